"""SpecAugment (Park et al., Interspeech 2019, arXiv 1904.08779): bands and spans of time of an input are masked."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diminuendo.families import Model, family_of
from diminuendo.tasks.selfsupervised import span_mask

BAND_MASKS, BAND_SHARE = 2, 27 / 80  # of the bands, at most, each
TIME_MASKS, TIME_SHARE = 10, 0.05  # of a clip, at most, each: as in the published recipes of FastConformers
STATES_MASKED, STATES_SPAN = 0.15, 5  # of frames of 20 ms


def generator_of(seed: int, draw: int) -> torch.Generator:
    """What a batch's masks are drawn from: they depend on nothing else."""
    # Torch's generator on the CPU takes 32 bits of a seed: mix, do not shift.
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, draw)).generate_state(1)[0]))


def augmented(
    model: Model, inputs: Mapping[str, Tensor], counts: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """An input with masks: of features bands and spans of time, of waveforms spans of the front end's frames.

    The latter need the model's learned embedding of masked frames; without one waveforms stay as they are.
    """
    if "input_features" in inputs:
        return {**inputs, "input_features": masked_features(inputs["input_features"], generator)}
    if getattr(family_of(model).encoder(model), "masked_spec_embed", None) is None:
        return dict(inputs)
    mask = span_mask(counts, int(counts.max()), STATES_MASKED, STATES_SPAN, generator)
    return {**inputs, "mask_time_indices": mask}


def masked_features(
    features: Float[Tensor, "batch frames bands"], generator: torch.Generator
) -> Float[Tensor, "batch frames bands"]:
    """BAND_MASKS bands and TIME_MASKS spans of every clip set to the clip's mean."""
    batch, frames, bands = features.shape
    mask = _spans(batch, BAND_MASKS, bands, BAND_SHARE, generator)[:, None, :]
    mask = mask | _spans(batch, TIME_MASKS, frames, TIME_SHARE, generator)[:, :, None]
    mean = features.mean((1, 2), keepdim=True)
    return torch.where(mask.to(features.device), mean, features)


def _spans(batch: int, number: int, size: int, share: float, generator: torch.Generator) -> Tensor:
    """[batch, size]: where one of `number` spans lies, each of a length up to `share` of the size."""
    lengths = torch.rand(batch, number, 1, generator=generator) * share * size
    starts = torch.rand(batch, number, 1, generator=generator) * (size - lengths)
    places = torch.arange(size)
    return ((places >= starts) & (places < starts + lengths)).any(1)
