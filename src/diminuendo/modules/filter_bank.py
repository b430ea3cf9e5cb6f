"""A front end that reads filter banks where a model had convolutions on the waveform.

From log-mel frames of 25 ms every 10 ms to what the convolutions gave every 20 ms. The plain one (Wang et al., arXiv
2210.15631) is a convolution of stride 2 and a linear layer. The other has a linear layer before these, too, and hears
no clip's level: neither do models of waveforms, whose clips or whose first channels are normalised. Both look back
alone, so that frame i ends where the convolutions' did and what lies behind a clip is never heard.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

BANDS, WINDOW, HOP = 80, 400, 160
"""Of Kaldi's filter banks at 16 kHz: bands; samples of a frame and between frames."""

KERNELS, STRIDES = (1, 3, 1), (1, 2, 1)
"""Of the layers; a plain front end lacks the first."""

STRIDE = math.prod(STRIDES)

LEAST = 1e5
"""Power that a clip's mean is heard beside, so that silence stays silent: as of waveforms 1e-7 of full scale."""

FLOOR = 1e-4
"""Of a clip's mean power, 40 dB below it, under every band: silence, or what a recording lacks, is no outlier."""


class FilterBankLayer(nn.Module):
    def __init__(self, reads: int, writes: int, kernel: int, stride: int, activation: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv1d(reads, writes, kernel, stride)
        self.activation = activation

    def forward(self, hidden: Tensor) -> Tensor:
        past = self.conv.kernel_size[0] - 1
        return self.activation(self.conv(nn.functional.pad(hidden, (past, 0))))  # type: ignore[no-any-return]


class FilterBankFrontEnd(nn.Module):
    """[batch, frames of 10 ms, bands] to [batch, channels, frames of 20 ms]; mean and deviation are of what is heard.

    channels: what each layer writes; of two layers it is plain. Frames of zeros are padding, as extractors give it.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, *channels: int) -> None:
        super().__init__()
        self.hears_level = len(channels) < len(KERNELS)
        self.register_buffer("mean", torch.zeros(BANDS))
        self.register_buffer("deviation", torch.ones(BANDS))
        activations = [*(nn.GELU() for _ in channels[1:]), nn.Identity()]
        depth = len(channels)
        layers = zip((BANDS, *channels), channels, KERNELS[-depth:], STRIDES[-depth:], activations, strict=False)
        self.conv_layers = nn.ModuleList(FilterBankLayer(*layer) for layer in layers)

    def heard(self, features: Tensor) -> Tensor:
        """The features, without each clip's level unless that is heard."""
        return features if self.hears_level else without_level(features)

    def forward(self, features: Tensor) -> Tensor:
        hidden = ((self.heard(features) - self.mean) / self.deviation).transpose(1, 2)
        for layer in self.conv_layers:
            hidden = layer(hidden)
        return hidden

    def _freeze_parameters(self) -> None:
        """What `freeze_feature_encoder` of the stock classes calls."""
        self.requires_grad_(False)

    @staticmethod
    def frames(samples: Any) -> Any:
        """How many frames a number of samples gives, as many as the convolutions."""
        return (samples - WINDOW) // HOP // STRIDE + 1


def without_level(features: Tensor) -> Tensor:
    """Logarithm of bands' power over their clip's mean, plus FLOOR: [batch, frames, bands]; padding stays zero."""
    own = (features != 0).any(-1, keepdim=True)
    bands = features.float().masked_fill(~own, -torch.inf)
    mean = bands.logsumexp((1, 2), keepdim=True) - (BANDS * own.sum(1, keepdim=True)).log()
    least, floor = (torch.full_like(mean, math.log(power)) for power in (LEAST, FLOOR))
    return torch.where(own, torch.logaddexp(bands - torch.logaddexp(mean, least), floor), 0.0).to(features.dtype)


def stands_for(*channels: int) -> dict[str, Any]:
    """What a configuration says of convolutions in its place, by which transformers counts frames of a mask."""
    depth = len(channels)
    return {
        "conv_dim": list(channels),
        "conv_kernel": [1] * depth,
        "conv_stride": list(STRIDES[-depth:]),
        "num_feat_extract_layers": depth,
    }


def as_values(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Hook: what extractors of filter banks call input_features is what the stock classes read as input_values.

    What a mask leaves out becomes padding. Where there are labels and no mask, they would count bands, and not frames.
    """
    given, named = list(args), dict(kwargs)
    if "input_features" in named:
        named["input_values"] = named.pop("input_features")
    heard = given.pop(0) if given else named.pop("input_values", None)
    mask = given.pop(0) if given else named.pop("attention_mask", None)
    if heard is not None and mask is not None:
        heard = heard.masked_fill(~mask.bool()[..., None], 0.0)
    elif heard is not None and named.get("labels") is not None:
        mask = torch.ones(heard.shape[:2], dtype=torch.long, device=heard.device)
    return (heard, mask, *given), named
