"""Convolutions over time of several groups of channels, as fast as they can be trained.

Stock kernels are slow for few channels a group and long filters, as a positional convolution has them (docs/LOG.md):
cuDNN takes 16 ms in bf16 where one takes 1 by Fourier transforms, and oneDNN 1.5 times what it takes for the same
convolution in the layout of images.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.fft import next_fast_len
from torch import Tensor


def grouped_convolution(
    hidden: Float[Tensor, "batch channels frames"],
    weight: Float[Tensor, "out group_channels taps"],
    bias: Float[Tensor, " out"] | None,
    *,
    padding: int,
    groups: int,
) -> Float[Tensor, "batch out new_frames"]:
    """What F.conv1d gives for the same arguments, also under autocast, up to rounding."""
    if hidden.device.type == "cuda":
        return by_fourier_transforms(hidden, weight, bias, padding=padding, groups=groups)
    image, taps = (t.unsqueeze(2).contiguous(memory_format=torch.channels_last) for t in (hidden, weight))
    return F.conv2d(image, taps, bias, padding=(0, padding), groups=groups).squeeze(2)


def by_fourier_transforms(
    hidden: Float[Tensor, "batch channels frames"],
    weight: Float[Tensor, "out group_channels taps"],
    bias: Float[Tensor, " out"] | None,
    *,
    padding: int,
    groups: int,
) -> Float[Tensor, "batch out new_frames"]:
    """As `grouped_convolution`: a product of spectra, in fp32; a complex matrix product for every frequency."""
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    frames = hidden.shape[-1] + 2 * padding
    assert frames >= weight.shape[-1], (frames, weight.shape)
    length = next_fast_len(frames, real=True)
    with torch.autocast(kind, enabled=False):
        heard = torch.fft.rfft(F.pad(hidden.float(), (padding, padding)), n=length)
        taps = torch.fft.rfft(weight.float(), n=length).conj()  # a convolution of networks is a correlation
        heard = heard.unflatten(1, (groups, -1)).permute(3, 1, 0, 2)  # frequencies, groups, batch, channels
        taps = taps.unflatten(0, (groups, -1)).permute(3, 0, 2, 1)  # frequencies, groups, channels, out
        product = (heard @ taps).permute(2, 1, 3, 0).flatten(1, 2)
        out: Tensor = torch.fft.irfft(product, n=length)[..., : frames - weight.shape[-1] + 1]
        if bias is not None:
            out = out + bias.float()[:, None]
    return out.to(dtype)
