"""BEST-RQ (Chiu et al. 2022, arXiv 2202.01855): predict masked features' codes in a codebook that is never learned.

For encoders that read features. A code is the nearest, by angle, of random vectors to a random projection of the
features that one of the encoder's frames is made of.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diminuendo.families import Model, family_of, model_inputs
from diminuendo.tasks.clips import clip_mean
from diminuendo.tasks.selfsupervised import Scalars, generator_of, span_mask

NOISE = 0.1  # of a band's deviation within its clip: that of what masked features are replaced with
LEAST_DEVIATION = 1e-3  # of a band within a clip; one that hardly moves is what rounding made of it


class RandomQuantiser(nn.Module):
    """Codes of vectors, from `codebooks` random projections (Xavier) with a codebook each. Nothing of it is learned."""

    projections: Tensor
    codes: Tensor

    def __init__(self, inputs: int, *, codebooks: int, codes: int, dim: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        projections = torch.empty(codebooks, inputs, dim)
        for projection in projections:
            nn.init.xavier_uniform_(projection, generator=generator)
        drawn = torch.randn(codebooks, codes, dim, generator=generator)
        self.register_buffer("projections", projections)
        self.register_buffer("codes", F.normalize(drawn, dim=-1))

    @torch.no_grad()
    def forward(self, vectors: Float[Tensor, "*frames inputs"]) -> Int[Tensor, "*frames codebooks"]:
        """Of each codebook the code with the largest cosine. In fp32 also under autocast."""
        with torch.autocast(vectors.device.type, enabled=False):
            projected = F.normalize(torch.einsum("...i,kid->...kd", vectors.float(), self.projections), dim=-1)
            return torch.einsum("...kd,kcd->...kc", projected, self.codes).argmax(-1)


def normalised(
    features: Float[Tensor, "batch features bands"], counts: Int[Tensor, " batch"]
) -> Float[Tensor, "batch features bands"]:
    """Every band of every clip with mean 0 and variance 1 over the clip's own features, of which it has `counts`.

    Otherwise one direction, that of loudness, would decide about all codes.
    """
    mean, deviation = _scale(features, counts)
    return (features - mean) / deviation


def _scale(features: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every band of every clip, [batch, 1, bands]."""
    mean = clip_mean(features, counts)[:, None]
    deviation = clip_mean((features - mean).square(), counts).sqrt().clamp(min=LEAST_DEVIATION)
    return mean, deviation[:, None]


def stacks(features: Tensor, frames: int, stacked: int, first: int) -> Tensor:
    """For each frame the features that it is made of: [batch, features, dim] to [batch, frames, stacked * dim].

    Frame i has those from i * stacked + first on, `first` being at most 0; zeros stand for what is beyond the ends.
    """
    missing = frames * stacked + first - features.shape[1]
    return F.pad(features, (0, 0, -first, missing)).reshape(len(features), frames, -1)


class BestRQ(nn.Module):
    """Cross-entropy of the codes of those frames whose features are all masked, from the last states, linearly.

    masked, span_seconds: the fraction of features that are masked, in spans so long. The mask, the noise in it and, of
    a streaming encoder, the lookahead of a batch (one of `lookaheads`, in frames) depend on `seed` and `draw` alone;
    the quantiser on `code_seed` (None: the same seed). The model is held in evaluation mode, as in MaskedPrediction,
    except for batch norms: these norm by the batch, and keep their statistics for later. norms_by_batch: False for
    evaluation mode without exception, where what is left of a model has to be what it was while it was gated.
    """

    def __init__(
        self,
        model: Model,
        *,
        codebooks: int,
        codes: int,
        code_dim: int,
        masked: float,
        span_seconds: float,
        lookaheads: Sequence[int] = (),
        seed: int,
        code_seed: int | None = None,
        norms_by_batch: bool = True,
    ) -> None:
        super().__init__()
        family = family_of(model)
        assert family.features is not None, "it reads waveforms"
        self.student, self.heard = model, family.features(model.config)
        self.masked, self.span = masked, max(1, round(span_seconds / self.heard.seconds))
        self.lookaheads, self.seed, self.norms_by_batch = tuple(lookaheads), seed, norms_by_batch
        bands = family.example(model, 16_000)["input_features"].shape[-1]
        self.quantiser = RandomQuantiser(
            self.heard.stacked * bands,
            codebooks=codebooks,
            codes=codes,
            dim=code_dim,
            seed=seed if code_seed is None else code_seed,
        )
        self.head = nn.Linear(model.config.hidden_size, codebooks * codes)

    def train(self, mode: bool = True) -> "BestRQ":
        super().train(mode)
        self.student.eval()
        for module in self.student.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.train(mode and self.norms_by_batch)
        return self

    def forward(self, waveforms: Tensor, lengths: Int[Tensor, " batch"], step: int, draw: int) -> Scalars:
        """`loss`, `accuracy`, and `commonest`, the share of the batch's commonest code: what a guess is worth."""
        inputs = model_inputs(self.heard.extractor, waveforms, lengths)
        features = inputs["input_features"]
        counts = _counts(inputs)
        generator = generator_of(self.seed, draw)
        mask = span_mask(counts, features.shape[1], self.masked, self.span, generator)
        mean, deviation = _scale(features, counts)  # where no extractor has normalised, 0 would be far from all speech
        noise = mean + NOISE * deviation * torch.randn(features.shape, generator=generator).to(features)
        heard: dict[str, Any] = {**inputs, "input_features": torch.where(mask[..., None], noise, features)}
        if self.lookaheads:
            choice = int(torch.randint(len(self.lookaheads), (), generator=generator))
            heard["num_lookahead_tokens"] = self.lookaheads[choice]
        states = family_of(self.student).hidden_states(self.student, heard)[-1]
        frames = states.shape[1]
        labels = self.labels(features, counts, frames)
        asked = self.whole(mask, frames)
        logits = self.head(states[asked]).float().unflatten(-1, (labels.shape[-1], -1))
        wanted = labels[asked]
        count = max(1, wanted.numel())  # a batch of a few very short clips may have no masked frame
        own = labels[self.whole(_own(counts, features.shape[1]), frames)]
        return {
            "loss": F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum") / count,
            "accuracy": (logits.detach().argmax(-1) == wanted).sum() / count,
            "commonest": (own == own.mode(0).values).float().mean() if len(own) else labels.new_zeros(()).float(),
        }

    def labels(
        self, features: Float[Tensor, "batch features bands"], counts: Int[Tensor, " batch"], frames: int
    ) -> Int[Tensor, "batch frames codebooks"]:
        """The codes of every frame, of features as the extractor gives them."""
        codes: Tensor = self.quantiser(
            stacks(normalised(features.float(), counts), frames, self.heard.stacked, self.heard.first)
        )
        return codes

    def whole(self, features: Bool[Tensor, "batch features"], frames: int) -> Bool[Tensor, "batch frames"]:
        """The frames that are made of such features alone; what is beyond a clip's ends is none."""
        return stacks(features[..., None], frames, self.heard.stacked, self.heard.first).all(-1)


def _counts(inputs: dict[str, Tensor]) -> Int[Tensor, " batch"]:
    """The number of each clip's own features."""
    features, mask = inputs["input_features"], inputs.get("attention_mask")
    full = torch.full((len(features),), features.shape[1], device=features.device)
    return full if mask is None else mask.long().sum(1)


def _own(counts: Int[Tensor, " batch"], features: int) -> Bool[Tensor, "batch features"]:
    return torch.arange(features, device=counts.device) < counts[:, None]
