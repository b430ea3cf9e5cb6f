"""From waveforms to a model's input, by the model's own feature extractor settings."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

SAMPLING_RATE = 16_000


def model_inputs(
    extractor: Any, waveforms: Float[Tensor, "batch samples"], lengths: Int[Tensor, " batch"]
) -> dict[str, Tensor]:
    """What transformers' Wav2Vec2FeatureExtractor makes of the clips, batched; padding stays zero.

    Clips are normalised to zero mean and unit variance over their own samples where the extractor says so
    (`do_normalize`). The attention mask is given whenever lengths differ, also to models that were published without:
    otherwise what a clip becomes would depend on the clips beside it more than it has to.
    """
    valid = torch.arange(waveforms.shape[1], device=waveforms.device) < lengths[:, None]
    if extractor.do_normalize:
        count = lengths[:, None].to(waveforms.dtype)
        mean = (waveforms * valid).sum(1, keepdim=True) / count
        centred = (waveforms - mean) * valid
        variance = centred.square().sum(1, keepdim=True) / count
        waveforms = centred / torch.sqrt(variance + 1e-7)
    inputs = {"input_values": waveforms}
    if not bool(valid.all()):
        inputs["attention_mask"] = valid.long()
    return inputs
