"""Wav2Vec2-Conformer: wav2vec 2.0's convolutions on the waveform, then conformer layers.

A layer has two half-step feed-forwards, attention with relative or rotary positions, and a convolution module.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from transformers import Wav2Vec2ConformerForCTC, Wav2Vec2ConformerModel

from diminuendo.families import wav2vec2
from diminuendo.families.conformer import convolution_axes
from diminuendo.families.family import Architecture, Family, Model
from diminuendo.families.parts import attention_product, encoder_in, feed_forward_axes, heads_axis, sublayer, whole
from diminuendo.modules.padding import mask_padding
from diminuendo.modules.ragged_rnnt import RaggedWav2Vec2ConformerForRNNT
from diminuendo.modules.ragged_wav2vec2_conformer import (
    CONVOLUTIONS,
    NORMS,
    RaggedWav2Vec2ConformerForCTC,
    RaggedWav2Vec2ConformerModel,
    positions,
    residual,
)
from diminuendo.structure.axis import Axis, Product, Slice


def _attention_axes(attention: Any, name: str, prefix: str, norm: tuple[Slice, ...]) -> Iterator[Axis]:
    if not hasattr(attention, "linear_out"):
        return
    yield sublayer(attention, name, prefix, "linear_out", norm)
    if not hasattr(attention, "linear_q"):
        return
    inputs = [part for part in ("linear_q", "linear_k", "linear_v", "linear_pos") if hasattr(attention, part)]
    biases = [Slice(f"{prefix}{name}.{part}", 0) for part in ("pos_bias_u", "pos_bias_v") if hasattr(attention, part)]
    minimum = 1 if hasattr(attention, "distance_embedding") else 0  # all heads share it
    yield heads_axis(attention, name, prefix, inputs, "linear_out", attention.head_size, biases, minimum)


def layer_axes(layers: nn.ModuleList, prefix: str, norm: str) -> Iterator[Axis]:
    """The axes of conformer layers, in the order of the signal. norm: the one after the depthwise convolutions."""
    for i, layer in enumerate(layers):
        name = f"encoder.layers.{i}"
        before = {part: whole(getattr(layer, own), f"{prefix}{name}.{own}") for part, own in NORMS.items()}
        matrices = ("intermediate_dense", "output_dense")
        yield from feed_forward_axes(layer.ffn1, f"{name}.ffn1", prefix, *matrices, before["ffn1"])
        yield from _attention_axes(layer.self_attn, f"{name}.self_attn", prefix, before["self_attn"])
        yield from convolution_axes(layer.conv_module, f"{name}.conv_module", prefix, norm)
        yield from feed_forward_axes(layer.ffn2, f"{name}.ffn2", prefix, *matrices, before["ffn2"])


def width_axes(model: Model) -> Iterator[Axis]:
    """Rotary positions rotate the stream as if it were heads, so they need it whole."""
    rotary = model.config.position_embeddings_type == "rotary"
    return wav2vec2.width_axes(model, residual, gathered=rotary)


def axes(model: Model) -> tuple[Axis, ...]:
    """The axes of an encoder or of the recogniser around it, in the order of the signal."""
    base, prefix = encoder_in(model)
    layers = layer_axes(base.encoder.layers, prefix, "batch_norm")
    return (*wav2vec2.front_end_axes(base, prefix), *layers, *width_axes(model))


def attention_products(model: Model, found: Sequence[Axis], frames: int, seconds: float) -> tuple[Product, ...]:
    """For every head and frame: queries times keys, weights times values, and queries times positions."""
    config = model.config
    head_dim, distances = config.hidden_size // config.num_attention_heads, 0
    if config.position_embeddings_type == "relative":
        distances = 2 * frames - 1
    elif config.position_embeddings_type == "relative_key":  # by our own attention (modules/ragged_wav2vec2_bert.py)
        distances = config.left_max_position_embeddings + config.right_max_position_embeddings + 1
    per_frame = float((2 * frames + distances) * head_dim)
    heads = [axis for axis in found if axis.kind == "heads"]
    return tuple(attention_product(axis, per_frame, frames, seconds) for axis in heads)


def products(model: Model, frames: int, seconds: float) -> tuple[Product, ...]:
    return attention_products(model, axes(model), frames, seconds)


def plain(model: Model) -> Model:
    """A deep copy in evaluation mode, without the positional convolution, which is never called.

    Positions are computed by our own modules (modules/ragged_wav2vec2_conformer.py), as in a compressed model.
    """
    copied = copy.deepcopy(model)
    encoder = encoder_in(copied)[0].encoder
    encoder.pos_conv_embed = nn.Identity()
    encoder.embed_positions = positions(model.config)
    mask_padding(encoder, CONVOLUTIONS)
    return copied.eval()


WAV2VEC2_CONFORMER = Family(
    architectures=(
        Architecture("AutoModel", Wav2Vec2ConformerModel, RaggedWav2Vec2ConformerModel),
        Architecture("AutoModelForCTC", Wav2Vec2ConformerForCTC, RaggedWav2Vec2ConformerForCTC),
        Architecture("AutoModelForRNNT", None, RaggedWav2Vec2ConformerForRNNT),
    ),
    plain=plain,
    declared=axes,
    products=products,
    hidden_states=wav2vec2.hidden_states,
    frame_lengths=wav2vec2.frame_lengths,
    mask_padding=lambda model: mask_padding(encoder_in(model)[0].encoder, CONVOLUTIONS),
)
