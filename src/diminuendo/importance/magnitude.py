"""Importance of a member by the size of its weights."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diminuendo.importance.ranks import Scores, by_member, ranked
from diminuendo.structure.axis import Axis


def magnitude(axes: Sequence[Axis], state: Mapping[str, Tensor]) -> Scores:
    """The rank of a member in its axis by the L1 norm of all that goes with it. Buffers do not count."""

    def norm(axis: Axis) -> Float[Tensor, " members"]:
        total = torch.zeros(axis.size)
        for piece in axis.slices:
            weight = state[piece.parameter]
            if piece.dim is None or not weight.is_floating_point() or ".running_" in piece.parameter:
                continue
            owner = piece.members(axis.size, weight.shape[piece.dim])
            total += by_member(axis, piece.dim, owner, weight.detach().abs())
        return total

    return ranked(axes, norm)
