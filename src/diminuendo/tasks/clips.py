"""What all frames of a clip share, its voice, room and microphone, and a loss that asks a model to keep it.

What frames are trained on varies within clips, so nothing else does.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diminuendo.errors import UserError

KEPT_VARIANCE = 0.99


def clip_mean(frames: Float[Tensor, "batch frames dim"], counts: Int[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
    """Over each clip's own frames, of which it has `counts`; 0 for a clip without any."""
    valid = torch.arange(frames.shape[1], device=frames.device) < counts[:, None]
    return frames.masked_fill(~valid[..., None], 0.0).sum(1) / counts.clamp(min=1)[:, None]


def clip_statistics(
    frames: Float[Tensor, "batch frames dim"], counts: Int[Tensor, " batch"]
) -> Float[Tensor, "batch twice_dim"]:
    """Mean and standard deviation of each clip's own frames."""
    mean = clip_mean(frames, counts)
    return torch.cat([mean, clip_mean((frames - mean[:, None]).square(), counts).sqrt()], dim=-1)


@dataclass(frozen=True)
class Whitening:
    """Principal components, each of mean 0 and variance 1."""

    mean: Float[Tensor, " dim"]
    basis: Float[Tensor, "dim components"]

    def __call__(self, vectors: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch components"]:
        return (vectors - self.mean) @ self.basis

    def tensors(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "basis": self.basis}


def whitening_of(tensors: Mapping[str, Tensor]) -> Whitening:
    """The inverse of `Whitening.tensors`."""
    return Whitening(tensors["mean"], tensors["basis"])


def fit_whitening(vectors: Float[Tensor, "clips dim"]) -> Whitening:
    """Of the fewest components that hold KEPT_VARIANCE. UserError if all vectors are equal."""
    mean = vectors.mean(0)
    centred = (vectors - mean).double()
    if centred.abs().max() <= 1e-5 * (1 + mean.abs().max()):  # what rounding makes of equal ones
        raise UserError(
            f"clip_weights: the {len(vectors)} clips looked at sound alike; give more audio, or weights of 0"
        )
    _, singular, components = torch.linalg.svd(centred, full_matrices=False)
    variances = singular.square() / len(vectors)
    count = int((variances.cumsum(0) < KEPT_VARIANCE * variances.sum()).sum()) + 1
    return Whitening(mean, (components[:count].T / variances[:count].sqrt()).to(vectors.dtype))


class ClipHead(nn.Module):
    """From the mean of a clip's states, linearly, its whitened statistics.

    Whitened, because voices differ where clips vary little: of 160 components of log-mel statistics the strongest ten
    hold 87 % of the variance and tell 56 % of speakers, the strongest forty 98 and 87 % (docs/LOG.md). An error in
    units of the bands would be all about loudness.
    """

    mean: Tensor
    basis: Tensor

    def __init__(self, hidden_size: int, whitening: Whitening) -> None:
        super().__init__()
        self.register_buffer("mean", whitening.mean, persistent=False)
        self.register_buffer("basis", whitening.basis, persistent=False)
        self.head = nn.Linear(hidden_size, whitening.basis.shape[1])

    def forward(
        self,
        states: Float[Tensor, "batch frames dim"],
        bands: Float[Tensor, "batch frames bands"],
        counts: Int[Tensor, " batch"],
    ) -> Float[Tensor, ""]:
        """The mean squared error; 1 for a head that knows nothing."""
        with torch.autocast(bands.device.type, enabled=False):
            target = Whitening(self.mean, self.basis)(clip_statistics(bands, counts))
            found: Tensor = self.head(clip_mean(states.float(), counts))
        return (found - target).square().mean()
