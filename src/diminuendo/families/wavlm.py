"""WavLM: wav2vec 2.0's convolutions and layers, with an attention whose heads know their places.

Its attention is replaced by our own, fused one (modules/ragged_wavlm.py) wherever the model is ours to change. Heads
are told by the buffer `kept_heads`, which shrinks with them; the table of position biases belongs to the encoder.
"""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import WavLMForCTC, WavLMModel

from diminuendo.families import wav2vec2
from diminuendo.families.family import Architecture, Family, Model
from diminuendo.families.parts import attention_product, encoder_in, heads_axis, sharing_copy, sublayer
from diminuendo.modules.ragged_rnnt import RaggedWavLMForRNNT
from diminuendo.modules.ragged_wavlm import (
    FusedWavLMAttention,
    RaggedWavLMForCTC,
    RaggedWavLMModel,
    WavLMAttentionLike,
)
from diminuendo.structure.axis import Axis, Product, Slice


def _attention_axes(layer: Any, name: str, prefix: str, norm: tuple[Slice, ...]) -> Iterator[Axis]:
    attention, here = layer.attention, f"{prefix}{name}"
    if not hasattr(attention, "out_proj"):
        return
    table = f"{here}.rel_attn_embed.weight"
    around = sublayer(attention, name, prefix, "out_proj", norm)
    yield Axis(name, "sublayer", 1, tuple(s for s in around.slices if s.parameter != table), around.gates)
    if hasattr(attention, "q_proj"):
        places = (Slice(f"{here}.gru_rel_pos_const", 1), Slice(f"{here}.kept_heads", 0))
        inputs = ("q_proj", "k_proj", "v_proj")
        yield heads_axis(attention, name, prefix, inputs, "out_proj", attention.head_dim, places, minimum=1)


def axes(model: Model) -> tuple[Axis, ...]:
    """The axes of an encoder or of the recogniser around it; attention as `plain` makes it."""
    return wav2vec2.axes(model, _attention_axes)


def products(model: Model, frames: int, seconds: float) -> tuple[Product, ...]:
    """For every head the two products of attention, and the two gates of its position bias."""
    head_dim = model.config.hidden_size // model.config.num_attention_heads
    per_frame = 2.0 * frames * head_dim + 2.0 * head_dim
    return tuple(attention_product(axis, per_frame, frames, seconds) for axis in axes(model) if axis.kind == "heads")


def _with_our_attention(model: Model) -> Model:
    """The model itself, its stock attentions replaced; the new ones hold the same tensors."""
    for layer in encoder_in(model)[0].encoder.layers:
        stock = layer.attention
        if not isinstance(stock, WavLMAttentionLike):
            with torch.device("meta"):
                layer.attention = FusedWavLMAttention(stock)
            places = torch.arange(stock.num_heads, device=stock.out_proj.weight.device)
            layer.attention.load_state_dict({**stock.state_dict(keep_vars=True), "kept_heads": places}, assign=True)
    return model


def plain(model: Model) -> Model:
    return _with_our_attention(wav2vec2.plain(model)).eval()


def fast(model: Model) -> Model:
    """The same function by our attention; the tensors are shared, the model itself is not touched."""
    return _with_our_attention(sharing_copy(model)).train(model.training)


WAVLM = Family(
    architectures=(
        Architecture("AutoModel", WavLMModel, RaggedWavLMModel),
        Architecture("AutoModelForCTC", WavLMForCTC, RaggedWavLMForCTC),
        Architecture("AutoModelForRNNT", None, RaggedWavLMForRNNT),
    ),
    plain=plain,
    declared=axes,
    products=products,
    hidden_states=wav2vec2.hidden_states,
    frame_lengths=wav2vec2.frame_lengths,
    fast=fast,
    dense_only=("gru_rel_pos_linear",),
)
