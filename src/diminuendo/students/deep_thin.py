"""A student of the teacher's depth and a smaller width (the deep and thin one of Wang et al., arXiv 2210.15631)."""

import copy
import math
from typing import Any

import torch

from diminuendo.errors import UserError
from diminuendo.families import Model, encoder_config, family_of
from diminuendo.families.family import is_ragged

FRONT_ENDS = ("feature_extractor.", "subsampling.")


def deep_thin(teacher: Model, params: float, *, seed: int = 0) -> Model:
    """An encoder of the depth, heads and front end of a teacher's with at most `params` parameters, fresh weights.

    It is the widest whose feed-forward width keeps its ratio to the width; what room is left then goes to the
    feed-forward width, so the student falls short of `params` by less than one neuron a layer. The front end's
    convolutions are the teacher's, weights included (the published deep student draws them anew): from random ones
    short trainings do not recover.

    Raises UserError if not even the narrowest student fits.
    """
    config = encoder_config(teacher)
    if is_ragged(teacher):
        raise UserError("this teacher was compressed, and a thin student is the original in small: give the original")
    # A head has as many as every other, positional convolutions have groups, and sines come in pairs with cosines: in
    # every head, where positions are rotations.
    pairs = 2 if getattr(config, "position_embeddings_type", None) == "rotary" else 1
    step = math.lcm(pairs * config.num_attention_heads, getattr(config, "num_conv_pos_embedding_groups", 2), 2)
    fitting, room = None, 0.0
    for width in range(step, config.hidden_size + 1, step):
        candidate = thin_config(config, width)
        left = params - _size(teacher, candidate)
        if left < 0:
            break
        fitting, room = candidate, left
    if fitting is None:
        raise UserError(f"a student of {params:,.0f} parameters: even width {step} has more; allow more parameters")
    fitting.intermediate_size += int(room / _parameters_of_a_neuron_everywhere(teacher, fitting))
    torch.manual_seed(seed)
    student, base = _fresh(teacher, fitting), family_of(teacher).encoder(teacher)
    family_of(teacher).initialise(student)
    family_of(teacher).mask_padding(student)
    # What the subsampling's convolutions feed, a matrix, has the student's width.
    front = {name: value for name, value in base.state_dict().items() if name.startswith(FRONT_ENDS)}
    student.load_state_dict({name: front[name] for name in front if "subsampling.linear" not in name}, strict=False)
    return student.eval()


def _parameters_of_a_neuron_everywhere(teacher: Model, config: Any) -> int:
    """By how much a student grows with its feed-forward width."""
    wider = copy.deepcopy(config)
    wider.intermediate_size += 1
    return _size(teacher, wider) - _size(teacher, config)


def thin_config(config: Any, width: int) -> Any:
    """The configuration with another width, and a feed-forward width in proportion."""
    thin = copy.deepcopy(config)
    thin.hidden_size = width
    thin.intermediate_size = round(config.intermediate_size * width / config.hidden_size)
    return thin


def _size(teacher: Model, config: Any) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in _fresh(teacher, config).parameters())


def _fresh(teacher: Model, config: Any) -> Model:
    cls: Any = family_of(teacher).encoder_class
    return cls(config)
