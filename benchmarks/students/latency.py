"""Latencies of the grid's recognisers, measured without training any.

They depend on the shape alone: of every shape one recogniser is made again from what is kept, with weights by chance.
"""

from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.heard import hearing, median_ms
from benchmarks.recogniser_tables import LATENCY, PASSES, Results
from benchmarks.record import record
from benchmarks.students import make
from benchmarks.students.cells import MADE_BY_HAND, OF_WORDS, SEEDS, WHOLE, Cell, Encoder, encoders
from diminuendo.api import source_of
from diminuendo.errors import UserError
from diminuendo.families import Model, family_of
from diminuendo.families.build import ragged_config
from diminuendo.families.filter_bank_input import hears_filter_banks, with_filter_banks
from diminuendo.families.filter_banks import filter_bank_extractor
from diminuendo.families.recogniser import with_head
from diminuendo.modules.ragged import size
from diminuendo.profiling.count import count_macs_per_second, count_parameters
from diminuendo.recipes import RECIPES
from diminuendo.students.student import make_student

THREADS = (1, 2)


def shape(encoder: Encoder) -> str:
    """A name of what its latency depends on."""
    own = encoder.student == "pruned"
    return encoder.name.removeprefix("encoder_") if own else f"{encoder.student}_{encoder.input.removesuffix('-long')}"


def latency_ms(found: Results, encoder: Encoder, threads: int) -> float | None:
    """The mean of what is timed of its seeds."""
    shapes = dict.fromkeys(shape(replace(encoder, seed=seed)) for seed in range(SEEDS))
    times = [found.latency[key] for one in shapes if (key := f"{one}@{threads}") in found.latency]
    return sum(times) / len(times) if times else None


def timed(found: Results) -> dict[str, list[Cell]]:
    """Of every shape the recognisers of words that have it, any of which may be timed."""
    shapes: dict[str, list[Cell]] = {}
    for encoder in encoders():
        for seed in range(SEEDS):
            one = replace(encoder, seed=seed)
            there = [cell for text in OF_WORDS if (cell := Cell(one, text)).name in found.rows]
            if there:
                shapes.setdefault(shape(one), []).extend(there)
    for name, alike in shapes.items():
        rows = [found.rows[cell.name] for cell in alike]
        sizes = {(row["params"], row["macs_per_second"]) for row in rows}
        assert len(sizes) == 1, f"not of one shape {name}: {', '.join(cell.name for cell in alike)}"
    return shapes


def measure(found: Results, folder: Path) -> None:
    """Of every shape that there is, in turn, of untrained recognisers.

    Raises:
        UserError: one that is made again has not the size that is kept of it.
    """
    teacher, passes = source_of(make.TEACHER), {}
    for name, alike in timed(found).items():
        model = recogniser(found, teacher.model, alike[0]).eval()
        passes[name] = hearing(model, filter_bank_extractor() if hears_filter_banks(model) else teacher.extractor, 10.0)
    times = {
        f"{name}@{threads}": value for threads in THREADS for name, value in median_ms(passes, PASSES, threads).items()
    }
    record(folder / LATENCY, {"p50_ms": times})


def recogniser(found: Results, teacher: Model, cell: Cell) -> Model:
    """One of the shape that a cell's result is of.

    Raises:
        UserError: this code, or another teacher, gives another shape than the result has.
    """
    torch.manual_seed(0)
    model, row = _encoder(found, teacher, cell.encoder), found.rows[cell.name]
    shape = getattr(model.config, "diminuendo", {}).get("shape", {})
    width = size(shape.get("width", model.config.hidden_size))
    labels = (row["params"] - count_parameters(model)) // (width + 1) - 1
    model = with_head(model, "ctc", labels)
    made = (count_parameters(model), count_macs_per_second(model))
    if made != (told := (row["params"], row["macs_per_second"])):
        raise UserError(
            f"{cell.name}: expected {told[0]:,} parameters and {told[1]:,.0f} MACs/s, as its result has; the model "
            f"made again has {made[0]:,} and {made[1]:,.0f}: it is of other code or of another teacher"
        )
    return model


def _encoder(found: Results, teacher: Model, one: Encoder) -> Model:
    if one == WHOLE:
        return teacher
    heard = one.input != "waveform"
    if one.student in MADE_BY_HAND:
        shape = RECIPES[make.RECIPES[one.student]]().shape
        made = make_student(teacher, shape, make.KEEP * count_parameters(teacher)).model
        return with_filter_banks(made, plain=make.plain(one.input)) if heard else made
    like = with_filter_banks(teacher, plain=make.plain(one.input)) if heard else teacher
    architecture = family_of(teacher).architecture_of(like)
    assert architecture is not None
    shape = found.rows[one.name]["shape"]
    return architecture.ragged(ragged_config(architecture.ragged.config_class, like.config, shape))
