"""Orders that do not look at weights: chance, and whole layers."""

import re
from collections.abc import Sequence

import torch

from diminuendo.importance.ranks import Scores, ranked
from diminuendo.structure.axis import Axis


def at_random(axes: Sequence[Axis], seed: int = 0) -> Scores:
    """Members of every axis in a random order."""
    generator = torch.Generator().manual_seed(seed)
    return ranked(axes, lambda axis: torch.rand(axis.size, generator=generator))


def whole_layers(axes: Sequence[Axis]) -> Scores:
    """Every other layer goes first, the last one and those below it, then what is left, again from the top.

    That is how LayerDrop prunes (Fan et al. 2019, arXiv 1909.11556). axes: of sublayers alone; those of one layer have
    one score, and the budget may fall between them. The norms of a layer that norms after its sublayers stay.
    """
    layer_of = {axis.name: int(re.findall(r"\.(\d+)\.", axis.name)[-1]) for axis in axes}
    layers = sorted(set(layer_of.values()), reverse=True)
    order = [*layers[::2], *layers[1::2]]
    return {axis.name: torch.full((axis.size,), float(order.index(layer_of[axis.name]))) for axis in axes}
