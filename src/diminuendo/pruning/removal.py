"""Physical removal: the tensors of the smaller model, from the gated one and a selection."""

from collections.abc import Mapping

import torch
from torch import Tensor

from diminuendo.structure.axis import Axis, Selection


def remove(axes: tuple[Axis, ...], state: Mapping[str, Tensor], selection: Selection) -> dict[str, Tensor]:
    """Slices what stays out of `state` (a state dict with the gates multiplied in); nothing is changed in place.

    Tensors of which nothing stays are left out.
    """
    kept = dict(state)
    for axis in axes:
        members = selection[axis.name]
        for piece in axis.slices:
            if piece.parameter not in kept:
                continue  # gone with its sublayer
            tensor = kept[piece.parameter]
            if piece.dim is None:
                if not members.any():
                    del kept[piece.parameter]
                continue
            owner = piece.members(axis.size, tensor.shape[piece.dim])
            stays = (owner < 0) | members[owner.clamp(min=0)]
            index = stays.nonzero().flatten().to(tensor.device)
            kept[piece.parameter] = torch.index_select(tensor, piece.dim, index)
    return {name: tensor.contiguous() for name, tensor in kept.items() if tensor.numel()}
