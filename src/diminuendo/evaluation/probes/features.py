"""One vector per clip and layer: an encoder's hidden states, and the floors that any encoder must beat.

All are pooled alike: mean and standard deviation of each layer over a clip's own frames, [layers, 2 x dim] per clip,
whatever its length. A head reads a weighted sum of layers. SUPERB pools by the mean alone; a voice is also in how
frames vary (x-vectors pool so: Snyder et al. 2018).
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diminuendo.data.batching import Batch
from diminuendo.data.features import deltas, frame_counts, log_mel, mfcc
from diminuendo.families import Model, family_of, model_inputs
from diminuendo.profiling.count import evaluating

Features = Callable[[Batch], Float[Tensor, "batch layers dim"]]
"""Means, then deviations, over each clip's own frames; NaN for a clip too short for one frame."""


def encoder_features(model: Model, extractor: Any) -> Features:
    """The feature projection's output and every layer's, in evaluation mode, through the model's own feature extractor.

    As far as the model allows, a clip's vector does not depend on the batch: group-norm front ends see the padding.
    """
    family = family_of(model)

    @torch.no_grad()
    def features(batch: Batch) -> Float[Tensor, "batch layers twice_dim"]:
        inputs = model_inputs(extractor, batch.waveforms, batch.lengths)
        inputs = {name: value.to(model.device) for name, value in inputs.items()}
        counts = family.frame_lengths(model, batch.lengths).clamp(min=0)
        with evaluating(model):
            states = family.hidden_states(model, inputs)
        return torch.stack([_mean_and_deviation(state.float(), counts) for state in states], dim=1).cpu()

    return features


def log_mel_features(num_bands: int = 80) -> Features:
    """Log-mel bands: one layer of 2 x `num_bands`."""

    def features(batch: Batch) -> Float[Tensor, "batch 1 dim"]:
        return _mean_and_deviation(log_mel(batch.waveforms, num_bands), frame_counts(batch.lengths))[:, None]

    return features


def mfcc_features(num_coefficients: int = 20) -> Features:
    """Cepstra, slopes and slopes of slopes: one layer of 6 x `num_coefficients`."""

    def features(batch: Batch) -> Float[Tensor, "batch 1 dim"]:
        counts = frame_counts(batch.lengths)
        cepstra = mfcc(log_mel(batch.waveforms), num_coefficients)
        slopes = deltas(cepstra, counts)
        return _mean_and_deviation(torch.cat([cepstra, slopes, deltas(slopes, counts)], dim=-1), counts)[:, None]

    return features


def _mean(states: Float[Tensor, "batch frames dim"], counts: Int[Tensor, "batch"]) -> Float[Tensor, "batch dim"]:
    counts = counts.to(states.device)[:, None]
    valid = torch.arange(states.shape[1], device=states.device) < counts
    return states.masked_fill(~valid[..., None], 0).sum(1) / counts


def _mean_and_deviation(
    frames: Float[Tensor, "batch frames dim"], counts: Int[Tensor, "batch"]
) -> Float[Tensor, "batch twice_dim"]:
    mean = _mean(frames, counts)
    deviation = _mean((frames - mean[:, None]).square(), counts).sqrt()
    return torch.cat([mean, deviation], dim=-1)
