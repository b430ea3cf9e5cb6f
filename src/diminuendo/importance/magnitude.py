"""Importance of a member by the size of its weights."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diminuendo.structure.axis import Axis


def magnitude(axes: Sequence[Axis], state: Mapping[str, Tensor]) -> dict[str, Float[Tensor, " members"]]:
    """The L1 norm of all that goes with a member, relative to its axis's mean; infinite for a sublayer.

    Layers differ in the scale of their weights for reasons that say nothing of importance, so members are compared
    within their axis: over all axes, each then loses about the same fraction. Buffers do not count.
    """
    scores = {}
    for axis in axes:
        if axis.kind == "sublayer":
            scores[axis.name] = torch.full((axis.size,), torch.inf)
            continue
        total = torch.zeros(axis.size)
        for piece in axis.slices:
            weight = state[piece.parameter]
            if piece.dim is None or not weight.is_floating_point() or ".running_" in piece.parameter:
                continue
            length = weight.shape[piece.dim]
            sizes = weight.detach().float().cpu().abs().movedim(piece.dim, 0).reshape(length, -1).sum(1)
            owner = piece.members(axis.size, length)
            total.index_add_(0, owner[owner >= 0], sizes[owner >= 0])
        scores[axis.name] = total / total.mean()
    return scores
