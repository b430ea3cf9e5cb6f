"""The parts of the benchmark: what needs what, and where it is.

The working directory is that of benchmarks/synergy: its words and its Parakeet teacher are used, and made where they
are not there yet, under the same locks, so that both benchmarks may run at the same time.
"""

from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.conformer import make
from benchmarks.conformer.cells import KINDS, Cell, Kind, grid
from benchmarks.recognisers import check_result, model_fingerprint, task, unless_diverged
from benchmarks.record import record
from benchmarks.synergy.bench import Places
from benchmarks.workers import Job, quiet_worker, work_off

# The folders in the working directory, and the results.
ENCODERS: dict[Kind, str] = {"parakeet": "pretrained-full", "wav2vec2-conformer": "pretrained-wav2vec2-conformer"}
TEACHERS: dict[Kind, str] = {"parakeet": "teacher-full", "wav2vec2-conformer": "teacher-wav2vec2-conformer"}


def teacher_of(places: Places, kind: Kind) -> Path:
    return places.work / TEACHERS[kind]


def model_of(work: Path, name: str) -> Path:
    """A cell's model."""
    return work / "cells" / name / "model"


def jobs(places: Places, chosen: list[Cell]) -> tuple[dict[str, Job], bool]:
    """What can be made by now, and whether that is all: teachers, then cells in their order."""
    found: dict[str, Job] = {"task": partial(task, places.words)}
    for kind in KINDS:
        found |= _references(places, kind)
    there = {kind for kind in KINDS if places.made(TEACHERS[kind])}
    found |= {cell.name: partial(_made, places, cell) for cell in chosen if cell.kind in there}
    return found, len(there) == len(KINDS)


def _references(places: Places, kind: Kind) -> dict[str, Job]:
    """An encoder, and once it is there its recogniser; of a recogniser that is there that one alone."""
    encoder, teacher = places.work / ENCODERS[kind], teacher_of(places, kind)
    found: dict[str, Job] = {}
    if not teacher.is_dir():
        found[ENCODERS[kind]] = partial(make.pretrained, kind, places.unlabelled, encoder)
    if teacher.is_dir() or places.made(ENCODERS[kind]):
        found[TEACHERS[kind]] = partial(make.teacher, kind, encoder, places.words, teacher)
    return found


def _made(places: Places, cell: Cell) -> dict[str, Any]:
    teacher, model = teacher_of(places, cell.kind), model_of(places.work, cell.name)
    otherwise = {"cell": cell.as_dict(), "settings": make.settings_of(cell)}
    trained = partial(make.cell, cell, teacher, places.words, model)
    return {"teacher": model_fingerprint(teacher), **unless_diverged(cell.name, trained, otherwise)}


def check(places: Places, chosen: list[Cell]) -> None:
    """UserError if results are of other settings or another teacher than cells would be that are made now."""
    teachers: dict[Kind, str] = {}
    for cell in chosen:
        if places.made(cell.name):
            teacher = teacher_of(places, cell.kind)
            if cell.kind not in teachers and teacher.is_dir():
                teachers[cell.kind] = model_fingerprint(teacher)
            check_result(places.result(cell.name), make.settings_of(cell), teacher, teachers.get(cell.kind))


def worker(places: Places, number: int) -> None:
    quiet_worker(number)

    def save(name: str, values: dict[str, Any]) -> None:
        record(places.result(name), values)

    work_off(lambda: jobs(places, grid()), places.made, save, places.work / "locks")
