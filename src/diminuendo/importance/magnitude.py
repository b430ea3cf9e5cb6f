"""Importance of a member by the size of its weights."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diminuendo.structure.axis import Axis


def magnitude(axes: Sequence[Axis], state: Mapping[str, Tensor]) -> dict[str, Float[Tensor, " members"]]:
    """The rank, in (0, 1], of a member in its axis by the L1 norm of all that goes with it; infinite for a sublayer.

    Layers differ in the scale and the spread of their weights for reasons that say nothing of importance, so members
    are compared within their axis alone: of all axes the same fraction goes. Buffers do not count.
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
        scores[axis.name] = (total.argsort(stable=True).argsort() + 1) / axis.size
    return scores
