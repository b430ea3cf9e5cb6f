"""Recognisers of the grid's shapes with weights by chance, from results alone: what their latency depends on."""

import torch

from benchmarks.recogniser_tables import Results
from benchmarks.students import make
from benchmarks.students.cells import MADE_BY_HAND, WHOLE, Cell, Encoder
from diminuendo.errors import UserError
from diminuendo.families import Model, family_of
from diminuendo.families.build import ragged_config
from diminuendo.families.filter_bank_input import with_filter_banks
from diminuendo.families.recogniser import with_head
from diminuendo.modules.ragged import size
from diminuendo.profiling.count import count_macs_per_second, count_parameters
from diminuendo.recipes import RECIPES
from diminuendo.students.student import make_student


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
