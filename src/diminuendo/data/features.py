"""Log-mel bands and cepstra in plain torch, on the frame grid of the waveform encoders.

Frame i covers samples [hop i, hop i + window), with no centring and no padding. With the defaults at 16 kHz that is
[320 i, 320 i + 400), the grid of HuBERT's convolutional front end; and because no frame looks past its own window,
what else lies in a batch never changes a clip's features.
"""

import functools
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

LOWEST_HZ = 20.0
# About the power that 16-bit rounding noise leaves in one band: digital silence stays near recorded silence.
POWER_FLOOR = 1e-7


def frame_counts(
    lengths: Int[Tensor, "batch"],
    sampling_rate: int = 16000,
    hop_seconds: float = 0.02,
    window_seconds: float = 0.025,
) -> Int[Tensor, "batch"]:
    """Whole frames in clips of `lengths` samples; 0 for a clip shorter than one window."""
    window, hop = round(window_seconds * sampling_rate), round(hop_seconds * sampling_rate)
    return ((lengths - window) // hop + 1).clamp(min=0)


def log_mel(
    waveforms: Float[Tensor, "batch samples"],
    num_bands: int = 80,
    sampling_rate: int = 16000,
    hop_seconds: float = 0.02,
    window_seconds: float = 0.025,
) -> Float[Tensor, "batch frames bands"]:
    """Natural log of the power in mel bands from 20 Hz to half the sampling rate (Kaldi's triangles; Hann window).

    `frame_counts(lengths, ...)` says how many frames of each clip are its own; the rest cover padding.
    """
    window, hop = round(window_seconds * sampling_rate), round(hop_seconds * sampling_rate)
    if waveforms.shape[-1] < window:
        return waveforms.new_zeros(len(waveforms), 0, num_bands, dtype=torch.float32)
    fft_size = 1 << (window - 1).bit_length()
    frames = waveforms.float().unfold(-1, window, hop) * torch.hann_window(window, device=waveforms.device)
    power = torch.fft.rfft(frames, fft_size).abs().square()
    bank = _filter_bank(num_bands, fft_size, sampling_rate).to(waveforms.device)
    return torch.log(power @ bank + POWER_FLOOR)


def mfcc(
    log_mel_bands: Float[Tensor, "batch frames bands"], num_coefficients: int = 20
) -> Float[Tensor, "batch frames coefficients"]:
    """The first `num_coefficients` of the orthonormal DCT-II over the bands; coefficient 0 is the loudness."""
    bands = log_mel_bands.shape[-1]
    order = torch.arange(num_coefficients, dtype=torch.float64)
    phase = torch.outer(torch.arange(bands, dtype=torch.float64) + 0.5, order)
    basis = (math.pi / bands * phase).cos() * math.sqrt(2 / bands)
    basis[:, 0] /= math.sqrt(2)
    return log_mel_bands @ basis.to(log_mel_bands)


def deltas(
    features: Float[Tensor, "batch frames dim"], counts: Int[Tensor, "batch"], reach: int = 2
) -> Float[Tensor, "batch frames dim"]:
    """Slope per frame of the regression line over `reach` frames on either side, within each clip's own `counts`.

    Past a clip's ends its first and last frame are repeated, so padding is never read.
    """
    frame = torch.arange(features.shape[1], device=features.device)
    last = (counts.to(features.device) - 1).clamp(min=0)[:, None]

    def shifted(offset: int) -> Tensor:
        index = torch.minimum((frame + offset).clamp(min=0), last)
        return features.gather(1, index[..., None].expand_as(features))

    weights = range(1, reach + 1)
    slope = sum((k * (shifted(k) - shifted(-k)) for k in weights), torch.zeros_like(features))
    return slope / (2 * sum(k * k for k in weights))


@functools.cache
def _filter_bank(num_bands: int, fft_size: int, sampling_rate: int) -> Float[Tensor, "bins bands"]:
    triangles = mel_filter_bank(
        num_frequency_bins=fft_size // 2 + 1,
        num_mel_filters=num_bands,
        min_frequency=LOWEST_HZ,
        max_frequency=sampling_rate / 2,
        sampling_rate=sampling_rate,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    return torch.from_numpy(triangles).float()
