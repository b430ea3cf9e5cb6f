"""A student of some shape, begun with what of its teacher fits."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

from diminuendo.errors import UserError
from diminuendo.families import Model, encoder_config, family_of
from diminuendo.families.filter_bank_input import hears_filter_banks
from diminuendo.families.transducer import transducer_axes
from diminuendo.importance import magnitude
from diminuendo.profiling.count import count_parameters
from diminuendo.pruning.removal import remove
from diminuendo.structure.axis import Axis, Selection
from diminuendo.structure.shape import shape_of
from diminuendo.students.shape import StudentShape, solved, stock_config, why_not_copied

FRONT_ENDS = ("feature_extractor.", "subsampling.")
LAYER = re.compile(r"^((?:encoder\.)?layers\.)(\d+)")


@dataclass(frozen=True)
class Student:
    """model: an encoder. layers: those of the teacher that its own began as. from_teacher: names of its parameters."""

    model: Model
    layers: tuple[int, ...]
    from_teacher: frozenset[str]

    @property
    def copied(self) -> float:
        return self.copied_in(self.model)

    def copied_in(self, encoder: Model, replaced: str | tuple[str, ...] = ()) -> float:
        """The share of an encoder's parameters that come from the teacher.

        encoder: the student's, or what was made of that, with parts `replaced`.
        """
        # By module: in our classes a weight is in one part that is in two here, and what nothing uses is not there.
        modules = {path for path, _ in encoder.named_modules()}
        kept = (name for name in self.from_teacher if _owner(name) in modules and not name.startswith(replaced))
        sizes = {name: parameter.numel() for name, parameter in self.model.named_parameters()}
        return float(sum(sizes[name] for name in kept) / count_parameters(encoder))


def plan(teacher: Model, shape: StudentShape, params: float) -> tuple[Any, tuple[int, ...]]:
    """The configuration of `make_student`'s, and the layers that it begins as; raises what that does."""
    family = family_of(teacher)
    encoder = family.encoder(teacher)
    with torch.device("meta"):
        original = family.encoder_class(stock_config(encoder))
    heads = {axis.size for axis in transducer_axes(teacher)}  # all of one width, until something was removed
    whole = shape_of(family.axes(encoder)) == shape_of(family.axes(original)) and len(heads) <= 1
    if not whole or hears_filter_banks(encoder):
        raise UserError("this teacher was compressed, and a student has the original's layers: give the original")
    config = solved(encoder, shape, params)
    return config, _begun_as(encoder_config(encoder), config, shape)


def make_student(teacher: Model, shape: StudentShape, params: float, *, seed: int = 0) -> Student:
    """An encoder of a shape with at most `params` parameters, of transformers' class of a teacher's family.

    The front end's convolutions are the teacher's, weights included (the published deep student draws them anew): from
    random ones short trainings do not recover. Layers are the teacher's where heads are as wide as its own: then of a
    narrower student they are the heads, neurons and members of the residual stream with the largest weights, but
    for what belongs to positions, which is of the whole width. That and all else is drawn by the seed.

    Raises UserError for a shape that cannot be, or for a copy that was asked for and is not possible.
    """
    family = family_of(teacher)
    encoder = family.encoder(teacher)
    config, layers = plan(teacher, shape, params)
    torch.manual_seed(seed)
    model = family.encoder_class(config)
    family.initialise(model)
    family.mask_padding(model)
    state = _in_shape(encoder, config, layers) if layers else _front_end(encoder)
    own = model.state_dict()
    other = {_whole(name) for name, value in own.items() if name not in state or state[name].shape != value.shape}
    fitting = {name: state[name] for name in own if _whole(name) not in other}
    model.load_state_dict(fitting, strict=False)
    parameters = {name for name, _ in model.named_parameters()}
    return Student(model.eval(), layers, frozenset(fitting.keys() & parameters) | _multiplied_out(model, state))


def _multiplied_out(model: Model, state: Mapping[str, Tensor]) -> set[str]:
    """Takes over weights that are parametrised here and, in our classes, are not there; names of their parts here."""
    names = set()
    for path, module in model.named_modules():
        weight = state.get(f"{path}.weight")
        if is_parametrized(module, "weight") and weight is not None and weight.shape == module.weight.shape:
            module.weight = weight
            names |= {
                f"{path}.parametrizations.weight.{part}"
                for part, _ in module.parametrizations.weight.named_parameters()
            }
    return names


def _owner(name: str) -> str:
    """The module that a parameter is of, though it is a part of a parametrised one."""
    return _whole(name) if ".parametrizations." in name else name.rpartition(".")[0]


def _whole(name: str) -> str:
    """Of the parts that a weight is parametrised by, which fit together or not at all, the weight; else the name."""
    return name.partition(".parametrizations.")[0]


def _begun_as(teacher: Any, student: Any, shape: StudentShape) -> tuple[int, ...]:
    """The teacher's layers that become the student's, by configurations; none where they do not fit."""
    if shape.copy == "none" or why_not_copied(teacher, student) is not None:
        return ()
    depth, own = teacher.num_hidden_layers, student.num_hidden_layers
    return tuple(number * depth // own if shape.copy == "spread" else number for number in range(own))


def _front_end(encoder: Model) -> dict[str, Tensor]:
    """What the subsampling's convolutions feed, a matrix, has the student's width."""
    state = encoder.state_dict()
    return {name: state[name] for name in state if name.startswith(FRONT_ENDS) and "subsampling.linear" not in name}


def _in_shape(encoder: Model, config: Any, layers: tuple[int, ...]) -> dict[str, Tensor]:
    """The teacher's tensors by their names in the student, cut to a configuration's widths."""
    family = family_of(encoder)
    axes, plain = family.axes(encoder), family.plain(encoder)
    state = remove(axes, encoder.state_dict(), _largest(axes, plain.state_dict(), config))
    numbers = {layer: number for number, layer in enumerate(layers)}
    found = {}
    for name, value in state.items():
        layer = LAYER.match(name)
        if layer is None:
            found[name] = value
        elif (number := numbers.get(int(layer[2]))) is not None:
            found[f"{layer[1]}{number}{name[layer.end() :]}"] = value
    return found


def _largest(axes: tuple[Axis, ...], state: Mapping[str, Tensor], config: Any) -> Selection:
    """Of every axis as many members as the configuration has, those with the largest weights."""
    sizes = {
        "heads": config.num_attention_heads,
        "neurons": config.intermediate_size,
        "width": config.hidden_size,
        "channels": config.hidden_size,  # of a convolution module; a front end's all stay
    }
    scores = magnitude(axes, state)
    selection = {}
    for axis in axes:
        most = axis.size if axis.name.startswith(FRONT_ENDS) else sizes.get(axis.kind, axis.size)
        kept = torch.zeros(axis.size, dtype=torch.bool)
        kept[scores[axis.name].topk(min(most, axis.size)).indices] = True
        selection[axis.name] = kept
    return selection
