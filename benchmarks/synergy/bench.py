"""The parts of the benchmark in one working directory: what needs what, and where it is."""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.recognisers import check_result, model_fingerprint, task, unless_diverged
from benchmarks.record import record
from benchmarks.synergy import make
from benchmarks.synergy.cells import MODES, Cell, Mode, grid
from benchmarks.synergy.phones import as_phones
from benchmarks.words.corpus import words_of
from benchmarks.workers import Job, quiet_worker, work_off
from diminuendo.data.connected import connect
from diminuendo.errors import UserError

UTTERANCES = 24_000
SENTENCES = ("arctic", "kathleen")
# The results that say what test clips say.
TASKS: dict[Mode, str] = {"full": "task", "streaming": "task", "sentences": "task-sentences"}
OTHERS = ("librispeech_unlabelled", *SENTENCES)  # what encoders hear beside the words


@dataclass(frozen=True)
class Places:
    """Where the benchmark's parts are: recordings, what is made of them, a JSON for each result."""

    speech: Path
    work: Path
    results: Path

    @property
    def words(self) -> Path:
        return self.work / "words"

    @property
    def unlabelled(self) -> Path:
        return self.work / "unlabelled.jsonl"

    @property
    def sentences(self) -> Path:
        return self.work / "phones.jsonl"

    def texts(self, mode: Mode) -> Path:
        """What is recognised."""
        return self.sentences if mode == "sentences" else self.words

    def encoder(self, mode: Mode) -> Path:
        return self.work / f"pretrained-{mode}"

    def teacher(self, mode: Mode) -> Path:
        return self.work / f"teacher-{mode}"

    def result(self, name: str) -> Path:
        return self.results / f"{name}.json"

    def made(self, name: str) -> bool:
        """Whether its result is there, and of an encoder or a teacher, which others begin with, the model too."""
        needed = name.startswith(("pretrained-", "teacher-"))
        return self.result(name).is_file() and (not needed or (self.work / name).is_dir())


def lay_out(places: Places) -> None:
    """Makes the audio: connected words, sentences as phones; for pretraining the train part of all, without texts.

    Raises UserError if a folder is not there, or the extra `synthetic`.
    """
    for name in OTHERS:
        if not (places.speech / name / "manifest.jsonl").is_file():
            raise UserError(f"SPEECH {places.speech}: expected a folder {name} with a manifest.jsonl")
    connect(places.words, words_of(places.speech), train=UTTERANCES)
    folders = [*(places.speech / name for name in OTHERS), places.words]
    _write(places.unlabelled, [_unlabelled(row) for row in _rows(folders) if row.get("split", "train") == "train"])
    _write(places.sentences, as_phones(_rows([places.speech / name for name in SENTENCES])))


def _rows(folders: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Those of several manifests, with whole paths."""
    for manifest in (folder / "manifest.jsonl" for folder in folders):
        for row in map(json.loads, manifest.read_text().splitlines()):
            yield row | {"audio_filepath": str(manifest.parent.resolve() / row["audio_filepath"])}


def _unlabelled(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("audio_filepath", "duration")}


def _write(manifest: Path, rows: Iterable[dict[str, Any]]) -> None:
    if not manifest.is_file():
        beside = manifest.with_suffix(".tmp")
        beside.write_text("".join(json.dumps(row) + "\n" for row in rows))
        beside.rename(manifest)


def take(kept: Path, names: Sequence[str], places: Places) -> None:
    """Puts the models of these names that `kept` has, NAME/ beside NAME.json, where they would be made.

    Raises UserError if it has none, and where another model or another result is in the place of one.
    """
    there = [name for name in names if (kept / name).is_dir() and (kept / f"{name}.json").is_file()]
    if not there:
        raise UserError(f"--references {kept}: expected folders like {names[0]}, with a JSON of that name each")
    places.results.mkdir(parents=True, exist_ok=True)
    for name in there:
        model, result = places.work / name, places.result(name)
        if not model.exists():
            beside = model.with_name(f"{name}-taken")
            shutil.rmtree(beside, ignore_errors=True)
            shutil.copytree(kept / name, beside)
            beside.rename(model)
        if not result.exists():
            shutil.copyfile(kept / f"{name}.json", result)
        same_result = result.read_bytes() == (kept / f"{name}.json").read_bytes()
        if not same_result or model_fingerprint(model) != model_fingerprint(kept / name):
            raise UserError(f"{model} or {result} is not that of --references {kept}: remove both, or leave that out")


def jobs(places: Places, chosen: list[Cell]) -> tuple[dict[str, Job], bool]:
    """What can be made by now, and whether that is all: encoders, teachers of them, then cells in their order."""
    found: dict[str, Job] = {}
    modes = [mode for mode in MODES if any(cell.mode == mode for cell in chosen)]
    for mode in modes:
        found |= _references(places, mode)
    there = {mode for mode in modes if places.made(f"teacher-{mode}")}
    found |= {cell.name: _cell(places, cell) for cell in chosen if cell.mode in there}
    return found, len(there) == len(modes)


def _references(places: Places, mode: Mode) -> dict[str, Job]:
    encoder, teacher, texts = places.encoder(mode), places.teacher(mode), places.texts(mode)
    found: dict[str, Job] = {
        TASKS[mode]: lambda: task(texts),
        encoder.name: lambda: make.pretrained(mode, places.unlabelled, encoder),
    }
    if places.made(encoder.name):
        found[teacher.name] = lambda: make.teacher(mode, encoder, texts, teacher)
    return found


def _cell(places: Places, cell: Cell) -> Job:
    encoder, teacher = places.encoder(cell.mode), places.teacher(cell.mode)
    otherwise = {"cell": cell.as_dict(), "settings": make.settings_of(cell)}

    def trained() -> dict[str, Any]:
        return make.cell(cell, encoder, teacher, places.texts(cell.mode), places.work / "cells" / cell.name)

    def made() -> dict[str, Any]:
        of = {"teacher": model_fingerprint(teacher)} if cell.of_teacher else {}
        return {**of, **unless_diverged(cell.name, trained, otherwise)}

    return made


def check(places: Places, chosen: list[Cell]) -> None:
    """UserError if results are of other settings or another teacher than cells would be that are made now."""
    teachers: dict[Mode, str] = {}
    for cell in chosen:
        if places.made(cell.name):
            teacher = places.teacher(cell.mode)
            if cell.of_teacher and cell.mode not in teachers and teacher.is_dir():
                teachers[cell.mode] = model_fingerprint(teacher)
            known = teachers.get(cell.mode) if cell.of_teacher else None
            check_result(places.result(cell.name), make.settings_of(cell), teacher, known)


def worker(places: Places, number: int) -> None:
    quiet_worker(number)

    def save(name: str, values: dict[str, Any]) -> None:
        record(places.result(name), values)

    work_off(lambda: jobs(places, grid()), places.made, save, places.work / "locks")
