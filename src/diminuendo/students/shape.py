"""The shape of a student that is made by hand: what is asked of it, and the configuration that has it.

Published (Wang et al., arXiv 2210.15631) are the deep and thin one, whose feed-forward width is its width, and the
shallow and wide one, two of the teacher's layers.
"""

import copy
import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch

from diminuendo.errors import UserError
from diminuendo.families import Model, encoder_config, family_of
from diminuendo.families.family import is_ragged

Copied = Literal["first", "spread", "none"]

EXAMPLE = "layers=6,width=384,heads=6,ffn=1536,copy=first"


@dataclass(frozen=True, kw_only=True)
class StudentShape:
    """What is asked of a student.

    layers, heads: None for the teacher's; heads, where a copy is asked for, for as many as the width has of the
    teacher's. width: None for the largest, up to the teacher's, for which there is room. ffn: feed-forward neurons, or
    how many times the width; None for the teacher's proportion. If it is no number of neurons, what room is left goes
    to them, up to the teacher's.
    copy: which of the teacher's layers it begins with, the "first", or some "spread" over its depth, or "none"; None
    for the first, if the shape allows.
    """

    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    ffn: int | float | None = None
    copy: Copied | None = None

    def __str__(self) -> str:
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
        raise UserError(f"--student {text}: {name} is a number, got {value!r}; like {EXAMPLE}") from None
    if not 0 < number < math.inf:
        raise UserError(f"--student {text}: {name} must be above 0, got {value}")
    return number


def solved(teacher: Model, shape: StudentShape, params: float) -> Any:
    """The configuration of the widest student of a shape with at most `params` parameters.

    teacher: an encoder. Raises UserError where there is none: heads do not divide the width, or even the narrowest, or
    the one that was asked for, has more parameters.
    """
    if is_ragged(teacher):
        raise UserError("this teacher was compressed, and a student has the original's layers: give the original")
    config = encoder_config(teacher)
    step = _step(config, shape)
    if shape.width is None:
        widths = range(step, config.hidden_size + 1, step)
    else:
        if shape.width % step:
            raise UserError(f"--student {shape}: heads, and what else divides the width, take a multiple of {step}")
        widths = range(shape.width, shape.width + 1)
    fitting, room, least = None, 0.0, None
    for width in widths:
        candidate = _configuration(config, shape, width)
        size = parameters_of(teacher, candidate)
        least = least or size
        if size > params:
            break
        fitting, room = candidate, params - size
    if fitting is None:
        raise UserError(
            f"a student of {params:,.0f} parameters: even width {widths[0]} has {least:,}; allow more parameters"
        )
    if shape.ffn is None or isinstance(shape.ffn, float):
        most = max(fitting.intermediate_size, config.intermediate_size)
        more = int(room / _parameters_of_a_neuron_everywhere(teacher, fitting))
        fitting.intermediate_size = min(most, fitting.intermediate_size + more)
    return fitting


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
