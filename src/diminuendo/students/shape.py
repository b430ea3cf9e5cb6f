"""The shape of a student that is made by hand: what is asked of it, and the configuration that has it.

Published (Wang et al., arXiv 2210.15631) are the deep and thin one, whose feed-forward width is its width, and the
shallow and wide one, two of the teacher's layers.
"""

import copy
import math
from bisect import bisect_right
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import torch

from diminuendo.errors import UserError
from diminuendo.families import Model, encoder_config, family_of
from diminuendo.families.build import OF_ONE_CLASS
from diminuendo.profiling.count import count_parameters

Copied = Literal["first", "spread", "none"]

EXAMPLE = "layers=6,width=384,heads=6,ffn=1536,copy=first"


@dataclass(frozen=True, kw_only=True)
class StudentShape:
    """What is asked of a student.

    layers, heads: None for the teacher's; heads, where a copy is asked for, for as many as the width has of the
    teacher's. width: None for the largest, up to the teacher's, for which there is room. ffn: feed-forward neurons, or
    how many times the width; None for the teacher's proportion. Unless neurons are given, or times a given width,
    what room is left goes to them, up to the teacher's.
    copy: which of the teacher's layers it begins with, the "first", or some "spread" over its depth, or "none"; None
    for the first, if the shape allows.
    """

    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    ffn: int | float | None = None
    copy: Copied | None = None

    def __str__(self) -> str:
        if (name := next((name for name, shape in NAMED.items() if shape == self), None)) is not None:
            return name
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        texts = {name: f"{value:g}x" if isinstance(value, float) else value for name, value in given.items()}
        return ",".join(f"{name}={value}" for name, value in texts.items() if value is not None)


NAMED: dict[str, StudentShape] = {
    "thin": StudentShape(),
    "deep-thin": StudentShape(ffn=1.0),
    "shallow-wide": StudentShape(layers=2, ffn=1.0, copy="first"),
}


def parse_shape(text: str) -> StudentShape:
    """A name, or some of `layers=6,width=384,heads=6,ffn=1536,copy=first`; ffn=4x is four times the width."""
    if text in NAMED:
        return NAMED[text]
    expected = f"expected {', '.join(NAMED)}, or some of {EXAMPLE}"
    given: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in {field.name for field in fields(StudentShape)} or name in given:
            raise UserError(f"--student {text}: {part.strip()!r} is none of a shape's; {expected}")
        given[name] = value if name == "copy" else _number(text, name, value)
    if given.get("copy", "first") not in get_args(Copied):
        raise UserError(f"--student {text}: copy is one of {', '.join(get_args(Copied))}, got {given['copy']}")
    return StudentShape(**given)


def _number(text: str, name: str, value: str) -> int | float:
    times = name == "ffn" and value.endswith("x")
    try:
        number = float(value[:-1]) if times else int(value)
    except ValueError:
        kind = "is a whole number, or like 1.5x" if name == "ffn" else "is a whole number"
        raise UserError(f"--student {text}: {name} {kind}, got {value!r}; like {EXAMPLE}") from None
    if not 0 < number < math.inf:
        raise UserError(f"--student {text}: {name} must be above 0, got {value}")
    return number


def solved(teacher: Model, shape: StudentShape, params: float) -> Any:
    """The configuration of the widest student of a shape with at most `params` parameters.

    teacher: an encoder. Raises UserError where there is none: heads do not divide the width, a copy was asked for of
    what the teacher does not have, or even the narrowest, or the one that was asked for, has more parameters.
    """
    config = stock_config(teacher)
    if params <= 0:
        raise UserError(f"--student {shape}: beside its encoder a model has as much as it may; allow more parameters")
    if shape.copy in ("first", "spread"):
        if shape.heads is not None and shape.width is None:
            shape = replace(shape, width=shape.heads * _head(config))
        known = _configuration(config, shape, shape.width or _head(config))
        if (reason := why_not_copied(config, known)) is not None:
            raise UserError(f"--student {shape}: nothing can be copied, as {reason}; ask for less, or for copy=none")
    step, most = _step(config, shape), shape.width or config.hidden_size
    if (most % step and shape.width) or step > most:
        raise UserError(f"--student {shape}: heads, and what else divides the width, take a multiple of {step}")
    widths = range(shape.width or step, most + 1, step)
    least = _configuration(config, shape, widths[0])
    # Matrices of the layers alone, before a model of any size is built.
    if least.num_hidden_layers * widths[0] * (widths[0] + least.intermediate_size) > params or (
        parameters_of(teacher, least) > params
    ):
        larger = params >= count_parameters(teacher)
        raise UserError(
            f"--student {shape}: width {widths[0]} has more than the {params:,.0f} parameters that its encoder may "
            f"have{', as many as its teacher has' * larger}; "
            f"{'' if larger else 'allow more parameters, or '}ask for fewer layers, heads or neurons"
        )

    def size(width: int) -> float:
        return float(parameters_of(teacher, _configuration(config, shape, width)))

    fitting = _configuration(config, shape, widths[bisect_right(widths, params, key=size) - 1])
    if shape.ffn is None or (isinstance(shape.ffn, float) and shape.width is None):
        room = params - parameters_of(teacher, fitting)
        more = int(room / _parameters_of_a_neuron_everywhere(teacher, fitting))
        neurons = min(fitting.intermediate_size + more, config.intermediate_size)
        fitting.intermediate_size = max(fitting.intermediate_size, neurons)
    return fitting


def stock_config(teacher: Model) -> Any:
    """An encoder's configuration as transformers has it, though the encoder's class may be ours."""
    config = encoder_config(teacher)
    if not hasattr(config, "diminuendo"):
        return config
    values = {key: value for key, value in config.to_dict().items() if key not in OF_ONE_CLASS}
    return family_of(teacher).encoder_class.config_class(**values)


def _step(config: Any, shape: StudentShape) -> int:
    """What divides every width."""
    # A head has as many as every other, positional convolutions have groups, and sines come in pairs with cosines: in
    # every head, where positions are rotations.
    pairs = 2 if getattr(config, "position_embeddings_type", None) == "rotary" else 1
    heads = shape.heads or config.num_attention_heads
    whole = _head(config) if _heads_follow(shape) else pairs * heads
    return math.lcm(whole, getattr(config, "num_conv_pos_embedding_groups", 2), 2)


def _head(config: Any) -> int:
    """The width of a head."""
    return int(config.hidden_size // config.num_attention_heads)


def _heads_follow(shape: StudentShape) -> bool:
    """Whether the width says how many heads there are."""
    return shape.heads is None and shape.copy in ("first", "spread")


def _configuration(config: Any, shape: StudentShape, width: int) -> Any:
    """The teacher's configuration in another shape, of this width."""
    made = copy.deepcopy(config)
    made.hidden_size = width
    made.num_hidden_layers = shape.layers or config.num_hidden_layers
    as_wide = width // _head(config) if _heads_follow(shape) else config.num_attention_heads
    made.num_attention_heads = shape.heads or as_wide
    if getattr(config, "num_key_value_heads", None) is not None:
        made.num_key_value_heads = made.num_attention_heads
    ratio = config.intermediate_size / config.hidden_size if shape.ffn is None else shape.ffn
    made.intermediate_size = shape.ffn if isinstance(shape.ffn, int) else round(ratio * width)
    return made


def why_not_copied(teacher: Any, student: Any) -> str | None:
    """What keeps a student's layers from being some of its teacher's, by their configurations; None if nothing does."""
    for name, called in (("hidden_size", "width"), ("intermediate_size", "ffn"), ("num_hidden_layers", "layers")):
        own, its = getattr(student, name), getattr(teacher, name)
        if own > its:
            return f"{called} {own} is above the teacher's {its}"
    if _head(student) != _head(teacher):
        return f"heads are {_head(student)} wide, the teacher's {_head(teacher)}"
    if student.hidden_size < teacher.hidden_size and getattr(teacher, "add_adapter", False):
        return f"the teacher's adapter reads all of the width, {teacher.hidden_size}"
    return None


def parameters_of(teacher: Model, config: Any) -> int:
    """How many an encoder of the teacher's family has with a configuration."""
    cls: Any = family_of(teacher).encoder_class
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in cls(config).parameters())


def _parameters_of_a_neuron_everywhere(teacher: Model, config: Any) -> int:
    """By how much a student grows with its feed-forward width."""
    wider = copy.deepcopy(config)
    wider.intermediate_size += 1
    return parameters_of(teacher, wider) - parameters_of(teacher, config)
