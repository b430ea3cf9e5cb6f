"""SpecAugment (Park et al., Interspeech 2019, arXiv 1904.08779): bands and spans of time of an input are masked."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diminuendo.families import Model, family_of
from diminuendo.families.filter_bank_input import hears_filter_banks
from diminuendo.tasks.selfsupervised import span_mask

BAND_MASKS, BAND_SHARE = 2, 27 / 80  # of the bands, at most, each
TIME_MASKS, TIME_SHARE = 10, 0.05  # of a clip, at most, each: as in the published recipes of FastConformers
STATES_MASKED, STATES_SPAN = 0.15, 5  # of frames of 20 ms


def takes_masks(model: Model) -> bool:
    """Whether an encoder that reads waveforms has learned what stands for masked frames, and puts it there."""
    encoder = family_of(model).encoder(model)
    return bool(getattr(encoder.config, "apply_spec_augment", True)) and hasattr(encoder, "masked_spec_embed")


def augmented(
    model: Model,
    inputs: Mapping[str, Tensor],
    counts: Int[Tensor, " batch"],
    generator: torch.Generator,
    strength: float = 1.0,
) -> dict[str, Tensor]:
    """An input with masks: of features bands and spans of time, of waveforms spans of the front end's frames.

    So it is of filter banks in the place of a waveform, for the front end gives what that gave. counts: each clip's own
    frames. strength: how much of the published shares is masked at most. Waveforms of a model that takes no masks stay
    as they are.
    """
    if "input_features" in inputs and not hears_filter_banks(model):
        features = inputs["input_features"]
        valid = inputs.get("attention_mask", torch.ones_like(features[..., 0]))
        return {**inputs, "input_features": masked_features(features, valid.bool(), generator, strength)}
    if not takes_masks(model):
        return dict(inputs)
    mask = span_mask(counts, int(counts.max()), strength * STATES_MASKED, STATES_SPAN, generator)
    return {**inputs, "mask_time_indices": mask}


def at_some_level(
    waveforms: Float[Tensor, "batch samples"], level: float, generator: torch.Generator
) -> Float[Tensor, "batch samples"]:
    """Every clip louder or softer by up to `level` dB."""
    decibels = level * (2 * torch.rand(len(waveforms), 1, generator=generator) - 1)
    return waveforms * (10 ** (decibels / 20)).to(waveforms)


def masked_features(
    features: Float[Tensor, "batch frames bands"],
    valid: Bool[Tensor, "batch frames"],
    generator: torch.Generator,
    strength: float = 1.0,
) -> Float[Tensor, "batch frames bands"]:
    """BAND_MASKS bands and TIME_MASKS spans of every clip set to the clip's mean; what is not valid stays as it is."""
    batch, frames, bands = features.shape
    own = valid.sum(1).cpu()
    mask = _spans(torch.full((batch,), bands), BAND_MASKS, bands, strength * BAND_SHARE, generator)[:, None, :]
    mask = mask | _spans(own, TIME_MASKS, frames, strength * TIME_SHARE, generator)[:, :, None]
    mask = mask.to(features.device) & valid[..., None]
    mean = (features * valid[..., None]).sum((1, 2)) / (valid.sum(1) * bands).clamp(min=1)
    return torch.where(mask, mean[:, None, None], features)


def _spans(
    sizes: Int[Tensor, " batch"], number: int, longest: int, share: float, generator: torch.Generator
) -> Bool[Tensor, "batch longest"]:
    """Where one of `number` spans lies, each of a length up to `share` of the clip's size, within that."""
    scale = sizes[:, None, None]
    lengths = torch.rand(len(sizes), number, 1, generator=generator) * share * scale
    starts = torch.rand(len(sizes), number, 1, generator=generator) * (scale - lengths)
    places = torch.arange(longest)
    return ((places >= starts) & (places < starts + lengths)).any(1)
