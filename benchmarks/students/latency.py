"""Latencies of the grid's recognisers, measured without training any.

They depend on the shape alone: of every shape one recogniser is made again from what is kept, with weights by chance.
"""

from collections.abc import Iterable
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


def latency_ms(found: Results, encoder: Encoder, threads: int, seeds: Iterable[int] = range(SEEDS)) -> float | None:
    """The mean of what is timed of its seeds; None of nothing."""
    shapes = dict.fromkeys(shape(replace(encoder, seed=seed)) for seed in seeds)
    times = [found.latency[key] for one in shapes if (key := f"{one}@{threads}") in found.latency]
    return sum(times) / len(times) if times else None


def timed(found: Results) -> dict[str, Cell]:
    """Of every shape one recogniser of words that has it. UserError if others of that shape are of other sizes."""
    shapes: dict[str, Cell] = {}
    for encoder in encoders():
        for cell in [Cell(replace(encoder, seed=seed), text) for seed in range(SEEDS) for text in OF_WORDS]:
            if cell.name in found.rows:
                one = shapes.setdefault(shape(cell.encoder), cell)
                if _size(found, one) != _size(found, cell):
                    raise UserError(f"{one.name} and {cell.name} are to be of one shape; their sizes differ")
    return shapes


def measure(found: Results, folder: Path) -> None:
    """Times untrained recognisers of all shapes that there are, in turn, and keeps the latencies in `folder`.

    Raises:
        UserError: there are none, or one that is made again is not what is kept of it.
    """
    teacher, passes, labels = source_of(make.TEACHER), {}, set()
    for name, cell in timed(found).items():
        model = recogniser(found, teacher.model, cell)
        labels.add(model.config.vocab_size)
        passes[name] = hearing(model, filter_bank_extractor() if hears_filter_banks(model) else teacher.extractor, 10.0)
    if len(labels) != 1:
        raise UserError(f"expected recognisers of words, of one number of labels; found {sorted(labels)}")
    times = {
        f"{name}@{threads}": value for threads in THREADS for name, value in median_ms(passes, PASSES, threads).items()
    }
    record(folder / LATENCY, {"p50_ms": times})


def recogniser(found: Results, teacher: Model, cell: Cell) -> Model:
    """One of the shape that a cell's result is of, in evaluation mode.

    Parameters and MACs are compared with the result's. They do not tell how many heads share a width: students made by
    hand have as many as their recipe gives, pruned ones as their encoder's result says.

    Raises:
        UserError: this code, or another teacher, gives another shape than the result has.
    """
    torch.manual_seed(0)
    model = _encoder(found, teacher, cell.encoder)
    kept = getattr(model.config, "diminuendo", {}).get("shape", {}).get("width", model.config.hidden_size)
    params, macs = _size(found, cell)
    labels = (params - count_parameters(model)) // (size(kept) + 1) - 1  # a row and a bias of each, and of the blank
    model = with_head(model, "ctc", max(labels, 1))
    made = count_parameters(model), count_macs_per_second(model)
    if made != (params, macs):
        raise UserError(
            f"{cell.name}: expected {params:,} parameters and {macs:,.0f} MACs/s, as its result has; the model made "
            f"again has {made[0]:,} and {made[1]:,.0f}: it is of other code or of another teacher"
        )
    return model


def _size(found: Results, cell: Cell) -> tuple[int, float]:
    row = found.rows[cell.name]
    return row["params"], row["macs_per_second"]


def _encoder(found: Results, teacher: Model, one: Encoder) -> Model:
    if one == WHOLE:
        return teacher
    waveform, plain = one.input == "waveform", make.plain(one.input)
    if one.student in MADE_BY_HAND:
        by_hand = RECIPES[make.RECIPES[one.student]]().shape
        made = make_student(teacher, by_hand, make.KEEP * count_parameters(teacher)).model
        return made if waveform else with_filter_banks(made, plain=plain)
    like = teacher if waveform else with_filter_banks(teacher, plain=plain)
    architecture = family_of(teacher).architecture_of(like)
    assert architecture is not None
    if one.name not in found.rows:
        raise UserError(f"expected {one.name}.json, which says what is left of it, beside its recogniser's result")
    config = ragged_config(architecture.ragged.config_class, like.config, found.rows[one.name]["shape"])
    return architecture.ragged(config).eval()
