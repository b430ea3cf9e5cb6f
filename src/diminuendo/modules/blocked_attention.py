"""Attention with gated biases of relative positions on CPUs, in blocks of queries that stay in the cache.

Weights and their gradients are [frames, frames] for every head, and to write and read them takes longer than to compute
them. So they are made for a block at a time, in buffers that all blocks share, and made again in the backward pass, as
FlashAttention does (https://arxiv.org/abs/2205.14135, algorithm 4).
"""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS = 256
"""Queries in a block."""
NUMBERS = 2**18
"""Weights in a block, about: short clips have several heads in one."""

Place = tuple[int, slice, slice]
"""Of a block: clip, heads, queries."""


def _blocks(batch: int, heads: int, frames: int) -> tuple[list[Place], tuple[int, int, int]]:
    """All blocks, and the shape [heads, queries, frames] of the largest."""
    rows = min(ROWS, frames)
    together = min(heads, max(1, NUMBERS // (rows * frames)))
    starts = product(range(batch), range(0, heads, together), range(0, frames, rows))
    places = [(b, slice(h, min(h + together, heads)), slice(q, min(q + rows, frames))) for b, h, q in starts]
    return places, (together, rows, frames)


def _weights(
    query: Tensor, key: Tensor, gate: Tensor, distances: Tensor, padding: Tensor | None
) -> Iterator[tuple[Place, Tensor, Tensor, Tensor]]:
    """Of every block its place, its weights in the inputs' precision and in full, and a buffer, for use until the next.

    gate, distances: in full precision.
    """
    batch, heads, frames, width = query.shape
    places, largest = _blocks(batch, heads, frames)
    buffers = [like.new_empty(math.prod(largest)) for like in (query, distances, distances)]
    bias = distances.unfold(1, frames, 1)
    for clip, some, rows in places:
        shape = (some.stop - some.start, rows.stop - rows.start, frames)
        narrow, weights, spare = (buffer[: math.prod(shape)].view(shape) for buffer in buffers)
        torch.bmm(query[clip, some, rows], key[clip, some].transpose(1, 2), out=narrow)
        torch.mul(gate[clip, some, rows], bias[some, rows], out=spare).add_(narrow, alpha=width**-0.5)
        if padding is not None:
            spare.masked_fill_(padding[clip], -torch.inf)
        torch.softmax(spare, -1, out=weights)
        yield (clip, some, rows), narrow.copy_(weights), weights, spare


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        query, key, value, gate, distances, padding = inputs
        full = torch.promote_types(query.dtype, torch.float32)
        output = torch.empty_like(query)
        for place, weights, _, _ in _weights(query, key, gate.to(full), distances.to(full), padding):
            output[place] = torch.bmm(weights, value[place[:2]])
        ctx.save_for_backward(*inputs, output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, gate, distances, padding, output = ctx.saved_tensors
        d_output = gradients[0].contiguous()
        full = torch.promote_types(query.dtype, torch.float32)
        d_query, d_gate = torch.empty_like(query), torch.empty_like(gate)
        d_key, d_value = torch.zeros_like(key, dtype=full), torch.zeros_like(value, dtype=full)
        d_distances = torch.zeros_like(distances, dtype=full)
        shared = (d_output * output).sum(-1, keepdim=True, dtype=full)
        scale, gate, distances = query.shape[-1] ** -0.5, gate.to(full), distances.to(full)
        bias = distances.unfold(1, query.shape[2], 1)

        # A block's gradients of biases go into slanted rows: those of equal distance stand in a column then.
        together, rows, frames = _blocks(*query.shape[:3])[1]
        columns = frames + rows
        slanted = distances.new_zeros(together, rows, columns)
        for place, narrow, weights, spare in _weights(query, key, gate, distances, padding):
            clip, some, these = place
            count, height, _ = spare.shape
            d_value[clip, some] += torch.bmm(narrow.transpose(1, 2), d_output[place])
            torch.bmm(d_output[place], value[clip, some].transpose(1, 2), out=narrow)
            d_scores = torch.sub(narrow, shared[place], out=spare).mul_(weights)
            narrow.copy_(d_scores)
            d_query[place] = torch.bmm(narrow, key[clip, some]).mul_(scale)
            d_key[clip, some].add_(torch.bmm(narrow.transpose(1, 2), query[place]), alpha=scale)
            d_gate[place] = torch.mul(d_scores, bias[some, these], out=weights).sum(-1, keepdim=True)
            slant = slanted.as_strided(spare.shape, (rows * columns, columns + 1, 1))
            torch.mul(d_scores, gate[place], out=slant)
            reached = frames + height - 1
            d_distances[some, these.start : these.start + reached] += slanted[:count, :height, :reached].sum(1)
        return d_query, d_key.to(key.dtype), d_value.to(value.dtype), d_gate, d_distances, None


def blocked_attention(
    query: Tensor, key: Tensor, value: Tensor, gate: Tensor, distances: Tensor, padding: Tensor | None
) -> Tensor:
    """[batch, heads, frames, width]: the values, by weights with biases gate[b, h, q] * distances[h, q + k].

    query, key, value: [batch, heads, frames, width], keys and values from the last frame to the first;
    gate: [batch, heads, frames, 1]; distances: [heads, 2 * frames - 1];
    padding: [batch, frames], True for the keys, in their order, that are left out.
    """
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()  # products in bf16 would copy them
    return _BlockedAttention.apply(query, key, value, gate, distances, padding)  # type: ignore[no-any-return]
