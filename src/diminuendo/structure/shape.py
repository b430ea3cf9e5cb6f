"""The shape of a compressed model: kept members per axis, as JSON."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diminuendo.structure.axis import Axis, Selection

Kept = int | list[int]
"""How many members stay; or which ones (indices in the original model) where a consumer must know."""

Shape = dict[str, Kept]


def shape_of(axes: Sequence[Axis], selection: Selection | None = None) -> Shape:
    """The shape that is left when `selection` stays (everything, if there is none)."""
    shape: Shape = {}
    for axis in axes:
        kept = range(axis.size) if selection is None else selection[axis.name].nonzero().flatten().tolist()
        which = None if axis.positions is None else [axis.positions[member] for member in kept]
        if axis.kind == "width" and which == [*range(axis.size)]:
            which = None  # the number says the same as hundreds of them
        shape[axis.name] = len(kept) if which is None else which
    return shape


def sizes_of(axes: Sequence[Axis], shape: Shape) -> Float[Tensor, " axes"]:
    """How many members of every axis a shape keeps; all of what it does not name (the ranks of a dense matrix)."""
    kept = [shape.get(axis.name, axis.size) for axis in axes]
    return torch.tensor([one if isinstance(one, int) else len(one) for one in kept], dtype=torch.float64)
