"""Scores that `select` can compare over axes of different kinds and sizes."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diminuendo.structure.axis import Axis

Scores = dict[str, Float[Tensor, " members"]]


def ranked(axes: Sequence[Axis], importance: Callable[[Axis], Float[Tensor, " members"]]) -> Scores:
    """The rank of every member in its axis, in (0, 1]; infinite for a sublayer, which goes by its members alone.

    Layers differ in the scale and the spread of weights and gradients for reasons that say nothing of importance, so
    members are compared within their axis: of all axes the same fraction goes.
    """
    scores: Scores = {}
    for axis in axes:
        if axis.kind == "sublayer":
            scores[axis.name] = torch.full((axis.size,), torch.inf)
        else:
            scores[axis.name] = (importance(axis).argsort(stable=True).argsort() + 1) / axis.size
    return scores


def by_member(axis: Axis, piece_dim: int, owner: Tensor, values: Tensor) -> Float[Tensor, " members"]:
    """Adds up what belongs to every member of an axis along one dimension of a tensor."""
    sums = values.float().cpu().movedim(piece_dim, 0).reshape(len(owner), -1).sum(1)
    return torch.zeros(axis.size).index_add(0, owner[owner >= 0], sums[owner >= 0])
