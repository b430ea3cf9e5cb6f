"""Self-supervised targets and losses: the front end learns log-mel; the encoder predicts clusters of masked frames.

The second is HuBERT (Hsu et al. 2021, arXiv 2106.07447): cluster frames of the signal, then of a layer of the model
that learned those, and predict the cluster of every masked frame.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn
from torch.nn import functional as F

from diminuendo.data.features import deltas, frame_counts, log_mel, mfcc
from diminuendo.errors import UserError
from diminuendo.families import Model, family_of, model_inputs
from diminuendo.tasks.clips import ClipHead, Whitening, clip_mean

Scalars = dict[str, Tensor]
Inputs = Mapping[str, Tensor]
FrameFeatures = Callable[[Inputs], Float[Tensor, "batch frames dim"]]
"""Frames on the encoder's grid, of what `model_inputs` gives."""

NUM_BANDS = 80
NUM_CEPSTRA = 13
CLUSTER_DIM = 256  # of projected frames and class embeddings (HuBERT, section 3)
TEMPERATURE = 0.1
FRAMES_PER_BATCH = 10_000  # of mini-batch k-means (HuBERT, section 4)


@dataclass(frozen=True)
class FrameGrid:
    """The frames of a convolutional front end: frame i sees `window` samples from i `hop` on."""

    hop: int
    window: int
    sampling_rate: int = 16_000

    @property
    def seconds(self) -> dict[str, Any]:
        return {
            "sampling_rate": self.sampling_rate,
            "hop_seconds": self.hop / self.sampling_rate,
            "window_seconds": self.window / self.sampling_rate,
        }

    def counts(self, lengths: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        return frame_counts(lengths, **self.seconds)


def frame_grid(config: Any, sampling_rate: int = 16_000) -> FrameGrid:
    """The grid of a transformers configuration with `conv_kernel` and `conv_stride`; HuBERT's is 20 ms and 25 ms."""
    hop, window = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        window += (kernel - 1) * hop
        hop *= stride
    return FrameGrid(hop, window, sampling_rate)


def log_mel_frames(inputs: Inputs, grid: FrameGrid) -> Float[Tensor, "batch frames bands"]:
    """Log-mel bands of what the model hears, in fp32 also under autocast."""
    values = inputs["input_values"]
    with torch.autocast(values.device.type, enabled=False), torch.no_grad():
        return log_mel(values, NUM_BANDS, **grid.seconds)


def cepstral_frames(inputs: Inputs, grid: FrameGrid) -> Float[Tensor, "batch frames dim"]:
    """13 cepstra, their slopes and the slopes of these: 39 dimensions, HuBERT's first targets."""
    bands = log_mel_frames(inputs, grid)
    counts = grid.counts(sample_lengths(inputs))
    with torch.autocast(bands.device.type, enabled=False), torch.no_grad():
        cepstra = mfcc(bands, NUM_CEPSTRA)
        slopes = deltas(cepstra, counts)
        return torch.cat([cepstra, slopes, deltas(slopes, counts)], dim=-1)


def layer_frames(model: Model, inputs: Inputs) -> Float[Tensor, "batch frames dim"]:
    """The last states of a frozen encoder that sees everything."""
    with torch.inference_mode():
        states = family_of(model).hidden_states(model.to(inputs["input_values"].device), inputs)[-1]
    return states.float().clone()


def centred(features: FrameFeatures, grid: FrameGrid) -> FrameFeatures:
    """`features` without each clip's mean, over its own frames: what is to be clustered.

    A voice or a microphone shifts all frames of a clip, and where corpora are mixed clusters would tell those apart.
    """

    def of(inputs: Inputs) -> Float[Tensor, "batch frames dim"]:
        frames = features(inputs)
        return frames - clip_mean(frames, grid.counts(sample_lengths(inputs)))[:, None]

    return of


def sample_lengths(inputs: Inputs) -> Int[Tensor, " batch"]:
    values, mask = inputs["input_values"], inputs.get("attention_mask")
    return values.new_full((len(values),), values.shape[1], dtype=torch.long) if mask is None else mask.sum(1)


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of every dimension, over all clips: a clip's own level stays in its frames."""

    mean: Float[Tensor, " dim"]
    deviation: Float[Tensor, " dim"]

    def __call__(self, frames: Float[Tensor, "*frames dim"]) -> Float[Tensor, "*frames dim"]:
        return (frames - self.mean.to(frames.device)) / self.deviation.to(frames.device)


def fit_scale(frames: Float[Tensor, "frames dim"]) -> Scale:
    return Scale(frames.mean(0), frames.std(0).clamp(min=1e-5))


@dataclass(frozen=True)
class Clusters:
    """k-means centres of scaled frames: unscaled, loudness outweighs all other cepstra."""

    scale: Scale
    centres: Float[Tensor, "clusters dim"]

    def nearest(self, frames: Float[Tensor, "*frames dim"]) -> Int[Tensor, "*frames"]:
        """The cluster of every frame: that of the closest centre."""
        with torch.autocast(frames.device.type, enabled=False):
            centres = self.centres.to(frames.device)
            distances: Tensor = centres.square().sum(1) - 2 * self.scale(frames.float()) @ centres.T
        return distances.argmin(-1)

    def tensors(self) -> dict[str, Tensor]:
        return {"mean": self.scale.mean, "deviation": self.scale.deviation, "centres": self.centres}


def clusters_of(tensors: Mapping[str, Tensor]) -> Clusters:
    """The inverse of `Clusters.tensors`."""
    return Clusters(Scale(tensors["mean"], tensors["deviation"]), tensors["centres"])


def fit_clusters(stream: Iterable[Float[Tensor, "frames dim"]], num_clusters: int, seed: int) -> Clusters:
    """k-means of all frames of a stream, which are held: 180,000 an hour of audio at 20 ms each.

    Raises UserError if the stream has fewer frames than there are to be clusters.
    """
    frames = torch.cat(list(stream))
    if len(frames) < num_clusters:
        raise UserError(f"{num_clusters} clusters of {len(frames)} frames: give more audio, or lower num_clusters")
    scale = fit_scale(frames)
    kmeans = MiniBatchKMeans(num_clusters, batch_size=FRAMES_PER_BATCH, random_state=seed, n_init=3)
    kmeans.fit(scale(frames).numpy())
    return Clusters(scale, torch.from_numpy(kmeans.cluster_centers_).float())


def span_mask(
    counts: Int[Tensor, " batch"], frames: int, fraction: float, span: int, generator: torch.Generator
) -> Bool[Tensor, "batch frames"]:
    """Spans of `span` frames that start anywhere, so dense that every frame is masked with probability `fraction`.

    Spans may overlap and be cut by a clip's ends; frames past a clip's own `counts` are never masked. Drawn on the
    CPU from the generator alone.
    """
    start = 1 - (1 - fraction) ** (1 / span)
    starts = torch.rand(len(counts), frames + span - 1, generator=generator) < start
    mask: Tensor = starts.unfold(1, span, 1).any(-1).to(counts.device)
    return mask & (torch.arange(frames, device=counts.device) < counts[:, None])


def generator_of(seed: int, draw: int) -> torch.Generator:
    """What a forward pass draws at random, on the CPU, depends on these alone."""
    # Torch's generator takes 32 bits of a seed: mix, do not shift.
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, draw)).generate_state(1)[0]))


class ClusterHead(nn.Module):
    """Cosine between projected frames and an embedding for each cluster, over a temperature (HuBERT, equation 3)."""

    def __init__(self, hidden_size: int, num_clusters: int) -> None:
        super().__init__()
        self.projection = nn.Linear(hidden_size, CLUSTER_DIM)
        self.embeddings = nn.Parameter(torch.rand(num_clusters, CLUSTER_DIM) - 0.5)

    def forward(self, states: Float[Tensor, "*frames dim"]) -> Float[Tensor, "*frames clusters"]:
        return self.compare(self.projection(states))

    def compare(self, projected: Float[Tensor, "*frames dim"]) -> Float[Tensor, "*frames clusters"]:
        with torch.autocast(projected.device.type, enabled=False):  # in bf16 logits near 8 are steps of 0.03 apart
            unit = F.normalize(projected.float(), dim=-1)
            logits: Tensor = F.linear(unit, F.normalize(self.embeddings, dim=-1)) / TEMPERATURE
        return logits


class _Objective(nn.Module):
    """What both objectives do: hold the model in evaluation mode.

    In training mode transformers models mask at random and drop layers; masks here are drawn by the objective.
    """

    def __init__(self, model: Model, extractor: Any) -> None:
        super().__init__()
        self.student, self.extractor = model, extractor
        self.grid = frame_grid(model.config, extractor.sampling_rate)

    def train(self, mode: bool = True) -> "_Objective":
        super().train(mode)
        self.student.eval()
        return self


class FrontEndObjective(_Objective):
    """The convolutional front end and the projection after it, with a linear head, predict scaled log-mel bands.

    And, given what whitens clips' statistics, `clip_weight` times the loss of a ClipHead.
    """

    def __init__(
        self, model: Model, extractor: Any, scale: Scale, whitening: Whitening | None = None, clip_weight: float = 0.0
    ) -> None:
        super().__init__(model, extractor)
        self.scale, self.clip_weight = scale, clip_weight
        self.head = nn.Linear(model.config.hidden_size, NUM_BANDS)
        self.clip_head = ClipHead(model.config.hidden_size, whitening) if whitening is not None else None

    def forward(self, waveforms: Tensor, lengths: Int[Tensor, " batch"], step: int, draw: int) -> Scalars:
        """`loss` = `frame`, the mean squared error in units of each band's variance, + clip_weight x `clip`."""
        inputs = model_inputs(self.extractor, waveforms, lengths)
        bands = log_mel_frames(inputs, self.grid)
        features = self.student.feature_extractor(inputs["input_values"]).transpose(1, 2)
        projected = self.student.feature_projection(features)
        projected = projected[0] if isinstance(projected, tuple) else projected
        counts = self.grid.counts(lengths)
        valid = torch.arange(bands.shape[1], device=lengths.device) < counts[:, None]
        frame = (self.head(projected).float() - self.scale(bands))[valid].square().mean()
        if self.clip_head is None:
            return {"loss": frame}
        clip = self.clip_head(projected, bands, counts)
        return {"loss": frame + self.clip_weight * clip, "frame": frame, "clip": clip}


class MaskedPrediction(_Objective):
    """Cross-entropy of the clusters of masked frames, and `clip_weight` times the loss of a ClipHead.

    features: what was clustered. The mask of a batch, a `fraction` of its frames in spans of `span`, depends on `seed`
    and `draw` alone. whitening: of clips' statistics, None for no ClipHead. It hears the feature projection: from there
    layers can take what they want of them, and their own states stay free for what is said.
    """

    def __init__(
        self,
        model: Model,
        extractor: Any,
        features: FrameFeatures,
        clusters: Clusters,
        *,
        fraction: float,
        span: int,
        seed: int,
        whitening: Whitening | None = None,
        clip_weight: float = 0.0,
    ) -> None:
        super().__init__(model, extractor)
        self.features, self.clusters, self.clip_weight = features, clusters, clip_weight
        self.fraction, self.span, self.seed = fraction, span, seed
        self.head = ClusterHead(model.config.hidden_size, len(clusters.centres))
        self.clip_head = ClipHead(model.config.hidden_size, whitening) if whitening is not None else None

    def mask(self, counts: Int[Tensor, " batch"], frames: int, draw: int) -> Bool[Tensor, "batch frames"]:
        return span_mask(counts, frames, self.fraction, self.span, generator_of(self.seed, draw))

    def forward(self, waveforms: Tensor, lengths: Int[Tensor, " batch"], step: int, draw: int) -> Scalars:
        """`loss` = `masked` + clip_weight x `clip`; `masked` and `accuracy` are over masked frames."""
        inputs = model_inputs(self.extractor, waveforms, lengths)
        targets = self.clusters.nearest(self.features(inputs))
        counts = self.grid.counts(lengths)
        mask = self.mask(counts, targets.shape[1], draw)
        states = family_of(self.student).hidden_states(self.student, {**inputs, "mask_time_indices": mask})
        logits, wanted = self.head(states[-1][mask]), targets[mask]
        count = max(1, len(wanted))  # a batch of a few very short clips may have no masked frame
        masked = F.cross_entropy(logits, wanted, reduction="sum") / count
        accuracy = (logits.detach().argmax(-1) == wanted).sum() / count
        if self.clip_head is None:
            return {"loss": masked, "accuracy": accuracy}
        clip = self.clip_head(states[0], log_mel_frames(inputs, self.grid), counts)
        return {"loss": masked + self.clip_weight * clip, "masked": masked, "clip": clip, "accuracy": accuracy}
