"""The parts of the benchmark: what needs what, and where it is.

The working directory is that of benchmarks/synergy, whose words and sentences are used, and made where they are not
there yet.
"""

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.recognisers import check_result, model_fingerprint, task, unless_diverged
from benchmarks.record import record
from benchmarks.students import make
from benchmarks.students.cells import WHOLE, Cell, Encoder, Text, first, then
from benchmarks.synergy.bench import Places
from benchmarks.workers import Job, quiet_worker, work_off

TASKS: dict[Text, str] = {
    "words": "task",
    "tenth": "task",
    "longer": "task",
    "longest": "task",
    "sentences": "task-sentences",
}
PART = 10
ENCODERS = "student-encoders"
CELLS = "student-cells"


def encoder_of(places: Places, encoder: Encoder) -> Path:
    return make.TEACHER if encoder == WHOLE else places.work / ENCODERS / encoder.name


def texts_of(places: Places, text: Text) -> Path:
    """What is recognised; with a tenth of the texts the same dev and test clips."""
    if text == "sentences":
        return places.sentences
    return places.work / "words-tenth.jsonl" if text == "tenth" else places.words


def lay_out_tenth(places: Places) -> None:
    """A tenth of the train utterances, drawn by chance, beside all of dev and test."""
    manifest = texts_of(places, "tenth")
    if manifest.is_file():
        return
    rows = [json.loads(line) for line in (places.words / "manifest.jsonl").read_text().splitlines()]
    train = [i for i, row in enumerate(rows) if row["split"] == "train"]
    left_out = set(train) - set(random.Random(0).sample(train, len(train) // PART))
    kept = [
        row | {"audio_filepath": str((places.words / row["audio_filepath"]).resolve())}
        for i, row in enumerate(rows)
        if i not in left_out
    ]
    beside = manifest.with_suffix(".tmp")
    beside.write_text("".join(json.dumps(row) + "\n" for row in kept))
    beside.rename(manifest)


def grid(places: Places) -> tuple[list[Cell], bool]:
    """The cells that are known by now, and whether these are all: the later ones are chosen by dev."""
    rows = [places.result(cell.name) for cell in first()]
    if not all(path.is_file() for path in rows):
        return first(), False
    # One that diverged is never the best.
    dev = {path.stem: json.loads(path.read_text()).get("dev_wer", float("inf")) for path in rows}
    return list(dict.fromkeys([*first(), *then(dev)])), True


def made(places: Places, name: str) -> bool:
    """Whether its result is there, and of an encoder the model too, without which no recogniser can begin."""
    result, model = places.result(name), places.work / ENCODERS / name
    if not result.is_file() or not name.startswith("encoder_"):
        return result.is_file()
    return "failed" in json.loads(result.read_text()) or (model / "config.json").is_file()


def jobs(places: Places, chosen: list[Cell]) -> dict[str, Job]:
    """What can be made by now: of every cell its encoder, and once that is there the recogniser."""
    texts: tuple[Text, ...] = ("words", "sentences")
    found: dict[str, Job] = {TASKS[text]: partial(task, texts_of(places, text)) for text in texts}
    for cell in chosen:
        encoder, at = cell.encoder, encoder_of(places, cell.encoder)
        if encoder == WHOLE or made(places, cell.name) or made(places, encoder.name):
            found[cell.name] = partial(_result, places, cell, at)
        else:
            found[encoder.name] = partial(_encoder, places, encoder, at)
    return found


def _encoder(places: Places, encoder: Encoder, out: Path) -> dict[str, Any]:
    otherwise = {"encoder": encoder.name, "settings": make.encoder_settings(encoder)}
    job = partial(make.encoder, encoder, places.unlabelled, out)
    return {"teacher": model_fingerprint(make.TEACHER), **unless_diverged(encoder.name, job, otherwise)}


def _result(places: Places, cell: Cell, start: Path) -> dict[str, Any]:
    otherwise = {"cell": cell.as_dict(), "settings": make.fine_tuning(cell)}
    if cell.encoder != WHOLE and "failed" in json.loads(places.result(cell.encoder.name).read_text()):
        return {"teacher": model_fingerprint(make.TEACHER), **otherwise, "failed": "its encoder's training diverged"}
    job = partial(make.cell, cell, start, texts_of(places, cell.text), places.work / CELLS / cell.name)
    return {"teacher": model_fingerprint(make.TEACHER), **unless_diverged(cell.name, job, otherwise)}


def check(places: Places) -> None:
    """Lays out the tenth. UserError if results are of other settings or another teacher than would be made now."""
    lay_out_tenth(places)
    teacher = model_fingerprint(make.TEACHER)
    chosen, _ = grid(places)
    settings = {cell.name: make.fine_tuning(cell) for cell in chosen}
    settings |= {one.name: make.encoder_settings(one) for one in {cell.encoder for cell in chosen} - {WHOLE}}
    for name, expected in settings.items():
        if places.result(name).is_file():
            check_result(places.result(name), expected, make.TEACHER, teacher)


def worker(places: Places, number: int) -> None:
    quiet_worker(number)

    def save(name: str, values: dict[str, Any]) -> None:
        record(places.result(name), values)

    def ready() -> tuple[dict[str, Job], bool]:
        chosen, all_known = grid(places)
        found = jobs(places, chosen)
        return found, all_known and all(cell.name in found for cell in chosen)

    work_off(ready, partial(made, places), save, places.work / "locks")
