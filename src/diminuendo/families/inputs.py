"""From waveforms to a model's input, by the model's own feature extractor settings."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Speech2TextFeatureExtractor

from diminuendo.families.filter_banks import filter_bank_frames, filter_bank_inputs
from diminuendo.modules.filter_bank import BANDS, FilterBankFrontEnd

SAMPLING_RATE = 16_000


def model_inputs(
    extractor: Any, waveforms: Float[Tensor, "batch samples"], lengths: Int[Tensor, " batch"]
) -> dict[str, Tensor]:
    """What transformers' feature extractor makes of the clips, batched, on the waveforms' device.

    Models that hear waveforms have Wav2Vec2FeatureExtractor: clips are normalised to zero mean and unit variance over
    their own samples where it says so (`do_normalize`), padding stays zero. The extractors of others are called.

    The attention mask is given whenever something is padding, also to models that were published without: otherwise
    what a clip becomes would depend on the clips beside it more than it has to.
    """
    if extractor.model_input_names[0] == "input_features":
        ours = isinstance(extractor, Speech2TextFeatureExtractor)
        return (filter_bank_inputs if ours else _features)(extractor, waveforms, lengths)
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


def _features(
    extractor: Any, waveforms: Float[Tensor, "batch samples"], lengths: Int[Tensor, " batch"]
) -> dict[str, Tensor]:
    """Features [batch, frames, dim] and, where a frame is not a clip's own, the mask; one clip can have such a frame.

    The last frame may be half a clip's and half padding, so it is the extractor's mask that decides.
    """
    clips = [clip[:length].numpy() for clip, length in zip(waveforms.cpu(), lengths.tolist(), strict=True)]
    made = extractor(clips, sampling_rate=SAMPLING_RATE, return_tensors="pt", padding=True)
    inputs = {"input_features": made["input_features"].to(waveforms.device)}
    if not bool(made["attention_mask"].all()):
        inputs["attention_mask"] = made["attention_mask"].to(waveforms.device)
    return inputs


def noise(model: Any, *shape: int) -> Tensor:
    """Seeded noise on a model's device and in its precision, to count or time the model with."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.device, model.dtype)


def waveform_example(model: Any, samples: int) -> dict[str, Tensor]:
    """One clip for a model that reads waveforms, or filter banks in their place."""
    encoder = getattr(model, getattr(model, "base_model_prefix", ""), model)
    if isinstance(getattr(encoder, "feature_extractor", None), FilterBankFrontEnd):
        return {"input_features": noise(model, 1, filter_bank_frames(samples), BANDS)}
    return {"input_values": noise(model, 1, samples)}
