"""How encoders and recognisers are made, and what is measured of them."""

from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.recognisers import QUIET, errors_of, sizes, told
from benchmarks.record import RESULTS
from benchmarks.students.cells import Cell, Encoder, Input, Student
from benchmarks.synergy.make import RECOGNITION
from diminuendo.api import compress_to_result, finetune, source_of
from diminuendo.families.filter_bank_input import with_filter_banks
from diminuendo.profiling.count import count_parameters

TEACHER = RESULTS / "encoder" / "teacher"
# Of the teacher: so that its convolutions on the waveform are as large a part of a student as HuBERT Base's are of a
# quarter of that.
KEEP = 0.11
STEPS = 1200
FRONT_END_STEPS: dict[Input, int] = {"fbank": 200, "fbank-long": 600, "fbank-deep": 3000}  # before those
FRONT_END_RATE = 1e-2
RECIPES: dict[Student, str] = {"deep-thin": "deep-thin", "shallow-wide": "shallow-wide", "pruned": "dphubert"}
RATES: dict[Student, float] = {"deep-thin": 4e-3, "shallow-wide": 4e-3, "pruned": 4e-3}
BATCHES: dict[str, Any] = {"seconds_per_batch": 10.0, "max_seconds": 4.0, "precision": "bf16"}
LOSSES: dict[str, dict[str, Any]] = {
    "regression": {},
    "discriminative": {"discriminative": "projected", "regression_weight": 0.0},
    "both": {"discriminative": "projected"},
}
FINE_TUNING: dict[str, Any] = {
    **{key: RECOGNITION[key] for key in ("tokens", "seconds_per_batch", "speeds", "augment_strength")},
    "task": "ctc",
    "steps": 1600,
    "flat_start": 0.2,
    "augment_from": 0.4,
    "learning_rate": 1e-3,
    "head_learning_rate": 2e-3,
}


LONGER = 3
"""Times the steps: what filter banks need to have as much time as the waveform has."""


def plain(heard: Input) -> bool:
    """Whether filter banks have the published front end."""
    return heard in ("fbank", "fbank-long")


@cache
def budget(teacher: Path, heard: Input) -> str:
    """What an encoder keeps: of filter banks what is left of it when they are in the place of convolutions."""
    model = source_of(teacher).model
    kept = KEEP * count_parameters(model)
    if heard != "waveform":
        kept -= count_parameters(model) - count_parameters(with_filter_banks(model, plain=plain(heard)))
    return f"params={kept / 1e3:.3f}k"


def encoder_settings(encoder: Encoder) -> dict[str, Any]:
    """Of its distillation."""
    steps = encoder.times * STEPS
    after = steps // 3
    settings = BATCHES | LOSSES[encoder.loss] | {"seed": encoder.run_seed, "keep": budget(TEACHER, encoder.input)}
    settings |= {"steps": steps - after, "distil_steps": after}
    if encoder.input != "waveform":
        settings |= {"input": "fbank-plain" if plain(encoder.input) else "fbank"}
        settings |= {"input_steps": FRONT_END_STEPS[encoder.input], "input_learning_rate": FRONT_END_RATE}
    rate = RATES[encoder.student]
    if encoder.student == "pruned":  # the second stage has half of the rate, as in the grid of encoders
        return settings | {"learning_rate": rate, "distil_learning_rate": rate / 2}
    return settings | {"distil_learning_rate": rate}


def fine_tuning(cell: Cell) -> dict[str, Any]:
    times = {"longer": LONGER, "longest": LONGER**2}.get(cell.text, 1)
    return FINE_TUNING | {"steps": times * FINE_TUNING["steps"], "seed": cell.encoder.run_seed}


def encoder(one: Encoder, unlabelled: Path, out: Path) -> dict[str, Any]:
    """One encoder, made in `out`."""
    settings = encoder_settings(one)
    result = compress_to_result(
        str(TEACHER), unlabelled, out, recipe=RECIPES[one.student], resume=True, loop=QUIET, **settings
    )
    return {"encoder": one.name, "settings": settings, **told(result), **sizes(out)}


def cell(one: Cell, start: Path, texts: Path, out: Path) -> dict[str, Any]:
    """One recogniser, made in `out`, and what it can do."""
    settings = fine_tuning(one)
    result = finetune(str(start), texts, out, resume=True, loop=QUIET, **settings)
    return {"cell": one.as_dict(), "settings": settings, **told(result), **measured(out, texts)}


def measured(model: Path, texts: Path) -> dict[str, Any]:
    """Sizes; word errors on dev, by which is chosen, and on test clips, with how many there are in each."""
    result, errors = errors_of(model, texts, "test")
    dev = errors_of(model, texts, "dev")[0]["wer"]
    return {**sizes(model), "dev_wer": dev, "wer": {**result, "errors": errors}}
