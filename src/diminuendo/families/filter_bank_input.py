"""A model that hears filter banks, made of one that hears waveforms."""

import copy

import torch

from diminuendo.errors import UserError
from diminuendo.families.build import build
from diminuendo.families.family import Model, shape_before
from diminuendo.families.parts import encoder_in
from diminuendo.families.registry import family_of
from diminuendo.modules.filter_bank import BANDS, STRIDES, FilterBankFrontEnd, stands_for
from diminuendo.structure.shape import Shape, shape_of

FRONT_END = "feature_extractor."
_SAMPLES = 160_000


def hears_filter_banks(model: Model) -> bool:
    """Whether filter banks are in the place of convolutions on the waveform."""
    return isinstance(getattr(encoder_in(model)[0], "feature_extractor", None), FilterBankFrontEnd)


def with_filter_banks(model: Model, *, channels: int | None = None, seed: int = 0) -> Model:
    """The model with a fresh front end that reads filter banks; all behind it holds the very tensors of the model.

    channels: of its convolution; None for as many as a frame of the model has bands, or as the front end gives if these
    are fewer. UserError if the model reads features, or has frames of another length.
    """
    family = family_of(model)
    if not family.reads_waveforms or hears_filter_banks(model):
        raise UserError(f"--input fbank: MODEL ({type(model).__name__}) reads features already; leave --input out")
    plain = family.plain(model)
    its, own = int(family.frame_lengths(plain, torch.tensor(_SAMPLES))), FilterBankFrontEnd.frames(_SAMPLES)
    if abs(its - own) > 1:  # convolutions that look back give one more
        raise UserError(f"--input fbank: filter banks give {own} frames for 10 s, MODEL has {its}; leave --input out")
    base, prefix = encoder_in(plain)
    writes = base.feature_extractor.conv_layers[-1].conv.out_channels
    torch.manual_seed(seed)
    channels = channels or min(writes, STRIDES[0] * BANDS)
    front = FilterBankFrontEnd(channels, writes)
    state = {name: value for name, value in plain.state_dict().items() if not name.startswith(prefix + FRONT_END)}
    state |= {f"{prefix}{FRONT_END}{name}": value for name, value in front.state_dict().items()}
    before = shape_before(plain) | shape_of(family.axes(plain))  # what was removed whole is in the first alone
    kept = {name: size for name, size in before.items() if not name.startswith(FRONT_END)}
    sizes = (channels, writes)
    shape: Shape = {f"{FRONT_END}conv_layers.{i}.channels": size for i, size in enumerate(sizes)} | kept
    config = copy.deepcopy(model.config)
    inner = getattr(config, "encoder_config", config)
    for name, value in stands_for(*sizes).items():
        setattr(inner, name, value)
    config.diminuendo = {**getattr(config, "diminuendo", {}), "input": "fbank"}
    return build(plain, shape, state, config)
