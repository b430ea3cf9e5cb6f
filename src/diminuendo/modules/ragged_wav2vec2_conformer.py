"""Wav2Vec2-Conformer with a size of its own for every layer.

Its encoder builds wav2vec 2.0's positional convolution and never calls it: that is left out.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Wav2Vec2ConformerConfig, Wav2Vec2ConformerForCTC, Wav2Vec2ConformerModel

from .padding import mask_padding
from .ragged import EmptyAttention, Ragged, RaggedConfig, RemovedAttention, Shape, resize, shrink_feed_forward, size
from .ragged_conformer import drop_norms_before, shrink_convolution
from .ragged_wav2vec2 import shrink_front_end
from .residual import Residual, Stream, stream_of

NORMS = {"ffn1": "ffn1_layer_norm", "self_attn": "self_attn_layer_norm", "ffn2": "ffn2_layer_norm"}
"""Of the sublayers that are normed from outside: the norm."""
CONVOLUTIONS = r"layers\.\d+\.conv_module\.depthwise_conv"
"""Those over time: around them attention and feed-forward write into padding."""


class RelativePositions(nn.Module):
    """What the stock module gives, computed anew in every pass: sines and cosines of distances, [1, 2 frames - 1, dim].

    The stock module keeps its table in the precision of the last input, so a pass in bf16 spoils it for those after.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, hidden: Tensor) -> Tensor:
        frames, device = hidden.shape[1], hidden.device
        distance = torch.arange(frames - 1, -frames, -1, device=device).float()
        rate = torch.exp(torch.arange(0, self.dim, 2, device=device).float() * -(math.log(10000.0) / self.dim))
        angle = distance[:, None] * rate
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[None].to(hidden.dtype)


class RotaryPositions(nn.Module):
    """What the stock module gives, computed anew in every pass: cosines and sines, [2, frames, 1, 1, head_dim].

    The stock module keeps what it gave last, which after a pass in inference mode cannot be trained with.
    """

    def __init__(self, head_dim: int, base: float) -> None:
        super().__init__()
        self.head_dim, self.base = head_dim, base

    def forward(self, hidden: Tensor) -> Tensor:
        half = torch.arange(0, self.head_dim, 2, device=hidden.device).float()
        rate = 1.0 / (self.base ** (half / self.head_dim))
        angle = torch.arange(hidden.shape[1], device=hidden.device).float()[:, None] * rate
        angle = torch.cat([angle, angle], dim=-1)[:, None, None]
        return torch.stack([angle.cos(), angle.sin()]).to(hidden.dtype)


def positions(config: Any) -> nn.Module | None:
    """What the layers are told about positions; it has no tensors. None where they are told nothing."""
    if config.position_embeddings_type == "relative":
        return RelativePositions(config.hidden_size)
    if config.position_embeddings_type == "rotary":
        return RotaryPositions(config.hidden_size // config.num_attention_heads, config.rotary_embedding_base)
    return None


class _RotatesWhole:
    """Mixin of an attention with rotary positions, which rotate the residual stream as if it were heads."""

    stream: Stream

    def _apply_rotary_embedding(self, hidden_states: Tensor, positions: Tensor) -> Any:
        return super()._apply_rotary_embedding(self.stream.spread(hidden_states), positions)  # type: ignore[misc]


def residual(config: Any) -> Residual:
    layer = r"encoder\.layers\.\d+\."
    reads = "v" if config.position_embeddings_type == "rotary" else "qkv"  # the others read what was rotated
    return Residual(
        source=r"feature_projection\.projection",
        reads=layer + rf"(ffn[12]\.intermediate_dense|self_attn\.linear_[{reads}]|conv_module\.pointwise_conv1)",
        writes=layer + r"(ffn[12]\.output_dense|self_attn\.linear_out|conv_module\.pointwise_conv2)",
        norms=r"encoder\.layer_norm|" + layer + r"(\w+_layer_norm|conv_module\.layer_norm)",
    )


def shrink_self_attention(layer: Any, name: str, shape: Shape) -> None:
    """`num_heads` stays: only rotary positions read it, which rotate the residual stream as if it were heads."""
    attention, heads = layer.self_attn, size(shape[f"{name}.self_attn.heads"])
    if not shape[f"{name}.self_attn"]:
        layer.self_attn = RemovedAttention()
    elif heads == 0:
        layer.self_attn = EmptyAttention("linear_out", attention.linear_out.out_features)
    else:
        for part in ("linear_q", "linear_k", "linear_v", "linear_pos"):
            if hasattr(attention, part):
                resize(getattr(attention, part), writes=heads * attention.head_size)
        for part in ("pos_bias_u", "pos_bias_v"):
            if hasattr(attention, part):
                setattr(attention, part, nn.Parameter(torch.zeros(heads, attention.head_size)))
        resize(attention.linear_out, reads=heads * attention.head_size)
        if attention.position_embeddings_type == "rotary":
            attention.stream = stream_of(shape, attention.config)
            attention.__class__ = type(type(attention).__name__, (_RotatesWhole, type(attention)), {})


def shrink_encoder(encoder: Any, shape: Shape, norm: str) -> None:
    """norm: the one after the depthwise convolutions."""
    encoder.embed_positions = positions(encoder.config)
    for i, layer in enumerate(encoder.layers):
        name = f"encoder.layers.{i}"
        shrink_self_attention(layer, name, shape)
        shrink_convolution(layer, "conv_module", name, shape, norm, before="layer_norm")
        for part in ("ffn1", "ffn2"):
            shrink_feed_forward(layer, part, name, shape, "intermediate_dense", "output_dense")
        drop_norms_before(layer, name, shape, NORMS)


class RaggedWav2Vec2ConformerLayers(Ragged):
    residual = staticmethod(residual)

    def shrink(self, shape: Shape) -> None:
        base = self.encoder_inside
        shrink_front_end(base, shape)
        base.encoder.pos_conv_embed = nn.Identity()
        shrink_encoder(base.encoder, shape, "batch_norm")
        mask_padding(base.encoder, CONVOLUTIONS)


class RaggedWav2Vec2ConformerConfig(RaggedConfig, Wav2Vec2ConformerConfig):
    model_type = "diminuendo_wav2vec2_conformer"
    sentinel = "conv_dim"


class RaggedWav2Vec2ConformerModel(RaggedWav2Vec2ConformerLayers, Wav2Vec2ConformerModel):
    config_class = RaggedWav2Vec2ConformerConfig


class RaggedWav2Vec2ConformerForCTC(RaggedWav2Vec2ConformerLayers, Wav2Vec2ConformerForCTC):
    config_class = RaggedWav2Vec2ConformerConfig
