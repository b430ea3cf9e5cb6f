"""WavLM with a size of its own for every layer, and its attention with any of its heads, fused.

Head h gates its bias of relative positions by the h-th part of what the attention reads, and takes the bias itself from
the h-th column of one table, which lies in the first layer's attention and is read by all. So an attention that has
lost heads has to know which ones it kept: the buffer `kept_heads`, saved with the weights. The table stays whatever
happens to the first layer. There are no maps of attention to be had: fused attention never holds them.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import WavLMConfig, WavLMForCTC, WavLMModel

from .blocked_attention import blocked_attention
from .ragged import Ragged, RaggedConfig, Shape, shrink_feed_forward, size
from .ragged_wav2vec2 import drop_norms, residual, shrink_front_end, shrink_positional
from .residual import Stream, stream_of

IN_CACHE = 2**22
"""Bytes of all weights of an attention up to which blocks do not pay, by benchmarks/attention.py."""


def distance_biases(table: nn.Embedding, max_distance: int, frames: int) -> Tensor:
    """[heads, 2 * frames - 1]: the biases of key minus query, from frames - 1 down to 1 - frames."""
    half = table.num_embeddings // 2  # for either sign: half of them for single distances, half for ranges that widen
    exact = half // 2
    distance = torch.arange(frames - 1, -frames, -1, device=table.weight.device)
    far = torch.log(distance.abs().float() / exact) / math.log(max_distance / exact) * (half - exact)
    ranged = (exact + far).long().clamp(max=half - 1)
    bucket = (distance > 0).long() * half + torch.where(distance.abs() < exact, distance.abs(), ranged)
    return table(bucket).t().contiguous()  # type: ignore[no-any-return]


def attend(
    query: Tensor, key: Tensor, value: Tensor, gate: Tensor, distances: Tensor, padding: Tensor | None, dropout: float
) -> Tensor:
    """Attention with gated biases, arguments as of `blocked_attention`; the result [batch, heads, frames, width].

    PyTorch's fused one is slow on CPUs where a gradient goes into the bias (it falls back to many small steps) and in
    bf16. There we work in blocks, unless the weights are few enough to stay in the cache, or dropped out.
    """
    frames = query.shape[2]
    learned = torch.is_grad_enabled() and (gate.requires_grad or distances.requires_grad)
    explicit = not query.is_cuda and (learned or query.dtype == torch.bfloat16)
    traced = query.device.type != "cpu" or torch.compiler.is_compiling()
    if explicit and not (dropout or traced) and query[..., 0].numel() * frames * query.itemsize > IN_CACHE:
        return blocked_attention(query, key, value, gate, distances, padding)
    bias = (gate.contiguous() * distances.unfold(1, frames, 1)).to(query.dtype)  # the gate's order is the result's
    if padding is not None:
        bias = bias.masked_fill(padding[:, None, None], -torch.inf)
    if not explicit:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
    scale = query.shape[-1] ** -0.5
    scores = torch.baddbmm(bias.flatten(0, 1), query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2), alpha=scale)
    weights = F.dropout(scores.softmax(-1), dropout, training=dropout > 0)
    return torch.bmm(weights, value.flatten(0, 1)).unflatten(0, query.shape[:2])  # type: ignore[no-any-return]


class WavLMAttentionLike(nn.Module):
    """What the encoder expects of an attention beside its output: the biases, made by the first layer for all."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.max_distance = stock.max_distance
        if hasattr(stock, "rel_attn_embed"):
            self.rel_attn_embed = nn.Embedding(stock.num_buckets, stock.rel_attn_embed.embedding_dim)

    def distances(self, given: Tensor | None, frames: int) -> Tensor:
        return distance_biases(self.rel_attn_embed, self.max_distance, frames) if given is None else given


class FusedWavLMAttention(WavLMAttentionLike):
    """Equal to the stock attention of the same weights; with some of its heads, to that one without the others."""

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    kept_heads: Tensor

    def __init__(self, stock: Any, heads: int | None = None, stream: Stream | None = None) -> None:
        """heads: how many are left, None for all; stream: what is left of the residual stream, None for all."""
        super().__init__(stock)
        self.head_dim, self.dropout = stock.head_dim, stock.dropout
        self.stream = Stream(None, stock.embed_dim) if stream is None else stream
        heads = stock.num_heads if heads is None else heads
        for part in ("k_proj", "v_proj", "q_proj"):
            setattr(self, part, nn.Linear(stock.q_proj.in_features, heads * self.head_dim))
        self.out_proj = nn.Linear(heads * self.head_dim, stock.out_proj.out_features)
        self.gru_rel_pos_const = nn.Parameter(torch.ones(1, heads, 1, 1))
        self.gru_rel_pos_linear = nn.Linear(self.head_dim, 8)
        self.register_buffer("kept_heads", torch.arange(heads))

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, position_bias: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, None, Tensor]:
        batch, frames, _width = hidden_states.shape
        position_bias = self.distances(position_bias, frames)
        heads = (batch, frames, -1, self.head_dim)
        parts = self.stream.spread(hidden_states).view(heads).index_select(2, self.kept_heads).transpose(1, 2)
        # The stock module adds up four projections for each of the two gates: one of the sums does.
        weight = self.gru_rel_pos_linear.weight.view(2, 4, -1).sum(1)
        gates = torch.sigmoid(F.linear(parts, weight, self.gru_rel_pos_linear.bias.view(2, 4).sum(1)))
        gate = gates[..., :1] * (gates[..., 1:] * self.gru_rel_pos_const - 1.0) + 2.0
        query = self.q_proj(hidden_states).view(heads).transpose(1, 2)
        # With keys from last to first, query + key is the place of their distance: biases of all pairs are a view.
        backwards = hidden_states.flip(1)
        key = self.k_proj(backwards).view(heads).transpose(1, 2)
        value = self.v_proj(backwards).view(heads).transpose(1, 2)
        padding = None if attention_mask is None else attention_mask.ne(1).flip(1)
        everyone = len(self.kept_heads) == len(position_bias)
        distances = position_bias if everyone else position_bias.index_select(0, self.kept_heads)
        mixed = attend(query, key, value, gate, distances, padding, self.dropout if self.training else 0.0)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None, position_bias


class RemovedWavLMAttention(WavLMAttentionLike):
    def forward(
        self, hidden_states: Tensor, position_bias: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, None, Tensor]:
        return torch.zeros_like(hidden_states), None, self.distances(position_bias, hidden_states.shape[1])


class RaggedWavLMLayers(Ragged):
    residual = staticmethod(residual)

    def shrink(self, shape: Shape) -> None:
        base = self.encoder_inside
        stream = stream_of(shape, base.config)
        shrink_front_end(base, shape)
        shrink_positional(base.encoder, shape)
        for i, layer in enumerate(base.encoder.layers):
            name = f"encoder.layers.{i}"
            if shape[f"{name}.attention"]:
                layer.attention = FusedWavLMAttention(layer.attention, size(shape[f"{name}.attention.heads"]), stream)
            else:
                layer.attention = RemovedWavLMAttention(layer.attention)
            shrink_feed_forward(layer, "feed_forward", name, shape, "intermediate_dense", "output_dense")
            if base.config.do_stable_layer_norm:
                drop_norms(layer, name, shape)


class RaggedWavLMConfig(RaggedConfig, WavLMConfig):
    model_type = "diminuendo_wavlm"
    sentinel = "conv_dim"


class RaggedWavLMModel(RaggedWavLMLayers, WavLMModel):
    config_class = RaggedWavLMConfig


class RaggedWavLMForCTC(RaggedWavLMLayers, WavLMForCTC):
    config_class = RaggedWavLMConfig
