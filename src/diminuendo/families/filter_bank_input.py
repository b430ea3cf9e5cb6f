"""A model that hears filter banks, made of one that hears waveforms."""

import copy

import torch

from diminuendo.errors import UserError
from diminuendo.families.build import build
from diminuendo.families.family import Model, shape_before
from diminuendo.families.parts import encoder_in
from diminuendo.families.registry import family_of
from diminuendo.modules.filter_bank import BANDS, KERNELS, STRIDE, FilterBankFrontEnd, stands_for
from diminuendo.structure.shape import Shape, shape_of

FRONT_END = "feature_extractor."
_SAMPLES = 160_000


def hears_filter_banks(model: Model) -> bool:
    """Whether filter banks are in the place of convolutions on the waveform."""
    return isinstance(getattr(encoder_in(model)[0], "feature_extractor", None), FilterBankFrontEnd)


def hears_level(model: Model) -> bool:
    """Whether filter banks are heard with each clip's level."""
    return bool(getattr(getattr(encoder_in(model)[0], "feature_extractor", None), "hears_level", False))


def with_filter_banks(model: Model, *, plain: bool = False, seed: int = 0) -> Model:
    """The model with a fresh front end that reads filter banks; all behind it holds the very tensors of the model.

    plain: as published, see modules/filter_bank.py. Its convolution has as many channels as a frame of the model has
    bands, or as the front end gives if these are fewer. The layer before it, which a plain one lacks, has as many as
    leave no more parameters than without it. UserError if the model reads features, or has frames of another length.
    """
    family = family_of(model)
    if not family.reads_waveforms or hears_filter_banks(model):
        raise UserError(f"--input: MODEL ({type(model).__name__}) reads features already; leave it out")
    stock = family.plain(model)
    its, own = int(family.frame_lengths(stock, torch.tensor(_SAMPLES))), FilterBankFrontEnd.frames(_SAMPLES)
    if abs(its - own) > 1:  # convolutions that look back give one more
        raise UserError(f"--input: filter banks give {own} frames for 10 s, MODEL has {its}; leave it out")
    base, prefix = encoder_in(stock)
    writes = base.feature_extractor.conv_layers[-1].conv.out_channels
    torch.manual_seed(seed)
    channels = min(writes, STRIDE * BANDS)
    each = max(KERNELS) * channels  # weights of the convolution for a channel that it reads
    sizes = (channels, writes) if plain else (BANDS * each // (BANDS + 1 + each), channels, writes)
    front = FilterBankFrontEnd(*sizes)
    state = {name: value for name, value in stock.state_dict().items() if not name.startswith(prefix + FRONT_END)}
    state |= {f"{prefix}{FRONT_END}{name}": value for name, value in front.state_dict().items()}
    before = shape_before(stock) | shape_of(family.axes(stock))  # what was removed whole is in the first alone
    kept = {name: size for name, size in before.items() if not name.startswith(FRONT_END)}
    shape: Shape = {f"{FRONT_END}conv_layers.{i}.channels": size for i, size in enumerate(sizes)} | kept
    config = copy.deepcopy(model.config)
    inner = getattr(config, "encoder_config", config)
    for name, value in stands_for(*sizes).items():
        setattr(inner, name, value)
    config.diminuendo = {**getattr(config, "diminuendo", {}), "input": "fbank"}
    return build(stock, shape, state, config)
