"""Kaldi's filter banks in plain torch, as transformers' Speech2TextFeatureExtractor and kaldi-native-fbank make them.

25 ms every 10 ms, none beyond a clip's end; no dither.
"""

import functools
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Speech2TextFeatureExtractor
from transformers.audio_utils import mel_filter_bank, window_function

from diminuendo.modules.filter_bank import BANDS, HOP, WINDOW

SAMPLING_RATE = 16_000
FFT_SIZE = 512
PREEMPHASIS = 0.97
FLOOR = torch.finfo(torch.float32).eps
FULL_SCALE = 2.0**15  # Kaldi hears samples as 16-bit numbers


def filter_bank_extractor() -> Any:
    """What travels with a model that hears filter banks. Every clip's level stays in them: nothing has to be known
    beforehand of the clip, so that they can be streamed."""
    return Speech2TextFeatureExtractor(feature_size=BANDS, num_mel_bins=BANDS, do_ceptral_normalize=False)


def filter_bank_frames(samples: Any) -> Any:
    """How many frames a number of samples has."""
    return (samples - WINDOW) // HOP + 1


def filter_bank_inputs(
    extractor: Any, waveforms: Float[Tensor, "batch samples"], lengths: Int[Tensor, " batch"]
) -> dict[str, Tensor]:
    """As the extractor gives them: features [batch, frames, bands], 0 behind a clip's own, and their mask if it says
    anything."""
    features, counts = filter_banks(waveforms), filter_bank_frames(lengths).clamp(min=0)
    valid = torch.arange(features.shape[1], device=counts.device) < counts[:, None]
    inputs = {"input_features": features * valid[..., None]}
    if not bool(valid.all()):
        inputs["attention_mask"] = valid.long()
    return inputs


def filter_banks(waveforms: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames bands"]:
    """Of samples in [-1, 1] at 16 kHz; in fp32."""
    if waveforms.shape[-1] < WINDOW:
        return waveforms.new_zeros(len(waveforms), 0, BANDS, dtype=torch.float32)
    frames = waveforms.float().unfold(-1, WINDOW, HOP) * FULL_SCALE
    frames = frames - frames.mean(-1, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    window, bank = (part.to(frames.device) for part in _constants())
    with torch.autocast(frames.device.type, enabled=False):
        spectrum = torch.fft.rfft((frames - PREEMPHASIS * before) * window, FFT_SIZE)
        power = spectrum.real.square() + spectrum.imag.square()  # abs() takes roots, a third of the time
        return torch.log((power @ bank).clamp(min=FLOOR))


@functools.cache
def _constants() -> tuple[Tensor, Tensor]:
    """The window, and the bank [frequencies, bands]."""
    bank = mel_filter_bank(
        num_frequency_bins=FFT_SIZE // 2 + 1,
        num_mel_filters=BANDS,
        min_frequency=20.0,
        max_frequency=SAMPLING_RATE / 2,
        sampling_rate=SAMPLING_RATE,
        norm=None,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    window = window_function(WINDOW, "povey", periodic=False)
    return torch.from_numpy(window).float(), torch.from_numpy(bank).float()
