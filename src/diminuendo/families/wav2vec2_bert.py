"""Wav2Vec2-BERT: conformer layers on log-mel features, the convolutions over time causal.

Heads that share a table of distances keep at least one of them. What may follow the encoder (an adapter, a
feed-forward before it) stays as it is.
"""

import copy
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertForCTC, Wav2Vec2BertModel

from diminuendo.errors import UserError
from diminuendo.families import wav2vec2
from diminuendo.families.family import Architecture, Family, Features, Model
from diminuendo.families.inputs import SAMPLING_RATE, noise
from diminuendo.families.parts import encoder_in, sharing_copy
from diminuendo.families.wav2vec2_conformer import attention_products, layer_axes, width_axes
from diminuendo.modules.ragged_rnnt import RaggedWav2Vec2BertForRNNT
from diminuendo.modules.ragged_wav2vec2_bert import RaggedWav2Vec2BertForCTC, RaggedWav2Vec2BertModel, attend_near
from diminuendo.modules.ragged_wav2vec2_conformer import positions
from diminuendo.structure.axis import Axis, Product

# SeamlessM4TFeatureExtractor, in samples, and how many of its frames become one of the model's.
_WINDOW, _HOP, _STACKED = 400, 160, 2


def axes(model: Model) -> tuple[Axis, ...]:
    """The axes of an encoder or of the recogniser around it, in the order of the signal."""
    base, prefix = encoder_in(model)
    return (*layer_axes(base.encoder.layers, prefix, "depthwise_layer_norm"), *width_axes(model))


def products(model: Model, frames: int, seconds: float) -> tuple[Product, ...]:
    return attention_products(model, axes(model), frames, seconds)


def plain(model: Model) -> Model:
    """A deep copy in evaluation mode, positions and attention by our own modules, as in a compressed model."""
    copied = copy.deepcopy(model)
    encoder = encoder_in(copied)[0].encoder
    encoder.embed_positions = positions(model.config)
    attend_near(encoder)
    return copied.eval()


def fast(model: Model) -> Model:
    """The same function by our attention; the tensors are shared, the model itself is not touched."""
    copied = sharing_copy(model)
    attend_near(encoder_in(copied)[0].encoder)
    return copied


def frame_lengths(model: Model, sample_lengths: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """Pairs of the extractor's frames; one that is left over is in the tensor, beside padding, but masked."""
    return ((sample_lengths - _WINDOW) // _HOP + 1) // _STACKED


def example(model: Model, samples: int) -> dict[str, Tensor]:
    frames = int(frame_lengths(model, torch.tensor(samples)))
    return {"input_features": noise(model, 1, frames, model.config.feature_projection_input_dim)}


def features(config: Any) -> Features:
    """Of bands that the extractor has stacked. Raises UserError for a number of inputs that it cannot make."""
    bands, rest = divmod(config.feature_projection_input_dim, _STACKED)
    if rest:
        raise UserError(
            f"feature_projection_input_dim {config.feature_projection_input_dim}: expected an even number, the bands "
            "of two frames"
        )
    extractor = SeamlessM4TFeatureExtractor(feature_size=bands, num_mel_bins=bands, stride=_STACKED)
    return Features(extractor, _STACKED * _HOP / SAMPLING_RATE)


WAV2VEC2_BERT = Family(
    architectures=(
        Architecture("AutoModel", Wav2Vec2BertModel, RaggedWav2Vec2BertModel),
        Architecture("AutoModelForCTC", Wav2Vec2BertForCTC, RaggedWav2Vec2BertForCTC),
        Architecture("AutoModelForRNNT", None, RaggedWav2Vec2BertForRNNT),
    ),
    plain=plain,
    declared=axes,
    products=products,
    hidden_states=wav2vec2.hidden_states,
    frame_lengths=frame_lengths,
    example=example,
    fast=fast,
    features=features,
)
