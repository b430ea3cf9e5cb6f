"""Importance of a member by how far the loss or the hidden states move, to first order, when it goes.

The published criterion (Molchanov et al. 2017, arXiv 1611.06440) is the change of the loss: the gradient with respect
to a member's gate. Of a recogniser that is its task's loss, clip by clip, as at a minimum the sum over clips has none.
Of a model that is its own teacher the distillation loss has no gradient; there it is the change of what that loss
compares, the hidden states h: the length of dh/dz, estimated by gradients of r . h for random r, which have it as their
root mean square.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diminuendo.importance.ranks import Scores, by_member, ranked
from diminuendo.structure.axis import Axis

# With one, two seeds would agree on some 85 % of the kept members, with sixteen on 96 %.
DIRECTIONS = 16


def taylor(
    axes: Sequence[Axis],
    model: nn.Module,
    values_of: Iterable[Callable[[], Sequence[Float[Tensor, "..."]]]],
    seed: int = 0,
) -> Scores:
    """The rank of a member in its axis by the length of the gradient with respect to its gate.

    values_of: for some batches, what gives the hidden states of valid frames, which count alike, whatever their scale;
    or for some clips, what gives the loss. The gradient with respect to a gate of 1 is the sum of weight times gradient
    over what the gate multiplies.
    """
    squares = {axis.name: torch.zeros(axis.size) for axis in axes if axis.kind != "sublayer"}
    weights = {piece.parameter: model.get_parameter(piece.parameter) for axis in axes for piece in axis.gates}
    generator = torch.Generator().manual_seed(seed)
    for weight in weights.values():
        weight.requires_grad_(True)
    for found in _gradients(values_of, list(weights.values()), generator):
        products = {
            name: torch.zeros_like(weight) if gradient is None else weight.detach() * gradient
            for (name, weight), gradient in zip(weights.items(), found, strict=True)
        }
        for axis in axes:
            if axis.name not in squares:
                continue
            change = torch.zeros(axis.size)
            for piece in axis.gates:
                assert piece.dim is not None
                owner = piece.members(axis.size, products[piece.parameter].shape[piece.dim])
                change += by_member(axis, piece.dim, owner, products[piece.parameter])
            squares[axis.name] += change.square()
    return ranked(axes, lambda axis: squares[axis.name])


def _gradients(
    values_of: Iterable[Callable[[], Sequence[Tensor]]], weights: Sequence[Tensor], generator: torch.Generator
) -> Iterator[tuple[Tensor | None, ...]]:
    """For every batch the gradients of r . h / |h|, summed over the states h, in several random directions r.

    Of a loss, that of the loss.
    """
    for values in values_of:
        found = values()
        if found[0].dim() == 0:
            yield torch.autograd.grad(found[0], weights, allow_unused=True)
            continue
        for turn in range(DIRECTIONS):
            total = torch.zeros((), device=found[0].device)
            for state in found:
                direction = torch.randn(state.shape, generator=generator).to(state.device)
                total = total + (direction * state).sum() / state.detach().norm()
            yield torch.autograd.grad(total, weights, retain_graph=turn + 1 < DIRECTIONS, allow_unused=True)
