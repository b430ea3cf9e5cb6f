"""A front end that reads filter banks where a model had convolutions on the waveform.

From log-mel frames of 25 ms every 10 ms to what the convolutions gave every 20 ms (Wang et al., arXiv 2210.15631): a
convolution of stride 2 and a linear layer. It looks back alone, so that frame i ends where the convolutions' did and
what lies behind a clip is never heard, nor waited for.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

BANDS, WINDOW, HOP = 80, 400, 160
"""Of Kaldi's filter banks at 16 kHz: bands; samples of a frame and between frames."""

KERNELS, STRIDES = (3, 1), (2, 1)


class FilterBankLayer(nn.Module):
    def __init__(self, reads: int, writes: int, kernel: int, stride: int, activation: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv1d(reads, writes, kernel, stride)
        self.activation = activation

    def forward(self, hidden: Tensor) -> Tensor:
        past = self.conv.kernel_size[0] - 1
        return self.activation(self.conv(nn.functional.pad(hidden, (past, 0))))  # type: ignore[no-any-return]


class FilterBankFrontEnd(nn.Module):
    """[batch, frames of 10 ms, bands] to [batch, channels, frames of 20 ms]; mean and deviation are of the bands."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int, writes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(BANDS))
        self.register_buffer("deviation", torch.ones(BANDS))
        first = FilterBankLayer(BANDS, channels, KERNELS[0], STRIDES[0], nn.GELU())
        last = FilterBankLayer(channels, writes, KERNELS[1], STRIDES[1], nn.Identity())
        self.conv_layers = nn.ModuleList([first, last])

    def forward(self, features: Tensor) -> Tensor:
        hidden = ((features - self.mean) / self.deviation).transpose(1, 2)
        for layer in self.conv_layers:
            hidden = layer(hidden)
        return hidden

    def _freeze_parameters(self) -> None:
        """What `freeze_feature_encoder` of the stock classes calls."""
        self.requires_grad_(False)

    @staticmethod
    def frames(samples: Any) -> Any:
        """How many frames a number of samples gives, as many as the convolutions."""
        return (samples - WINDOW) // HOP // STRIDES[0] + 1


def stands_for(channels: int, writes: int) -> dict[str, Any]:
    """What a configuration says of convolutions in its place, by which transformers counts frames of a mask."""
    return {
        "conv_dim": [channels, writes],
        "conv_kernel": [1, 1],
        "conv_stride": list(STRIDES),
        "num_feat_extract_layers": 2,
    }


def as_values(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Hook: what extractors of filter banks call input_features is what the stock classes read as input_values.

    Where there are labels and no mask, they would count bands, and not frames.
    """
    named = dict(kwargs)
    if "input_features" in named:
        named["input_values"] = named.pop("input_features")
    if named.get("labels") is not None and named.get("attention_mask") is None:
        heard = named["input_values"] if "input_values" in named else args[0]
        named["attention_mask"] = torch.ones(heard.shape[:2], dtype=torch.long, device=heard.device)
    return args, named
