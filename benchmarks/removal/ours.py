"""Removal by diminuendo, and the gated model that any removal is compared with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.step.clock import Clock
from diminuendo.families import Model, build, build_cost_model, family_of
from diminuendo.importance import magnitude
from diminuendo.pruning.budget import Budget, select
from diminuendo.pruning.gating import Gates, attach
from diminuendo.pruning.removal import remove
from diminuendo.structure.axis import Axis, Selection
from diminuendo.structure.shape import shape_of
from diminuendo.training.removing import free_axes

# Groups of the positional convolution stay: a general pruner cannot take them, for they write into the residual stream.
FIXED = ("groups", "width")


class Removed(NamedTuple):
    """A smaller model, the members of the original that it kept, and how many seconds each part of making it took."""

    model: Model
    selection: Selection
    seconds: dict[str, float]


Remover = Callable[[Model, float], Removed]
"""From a model and MACs per second to the model that has about as many; the given one stays as it is."""


def plain_and_axes(model: Model) -> tuple[Model, tuple[Axis, ...]]:
    plain = family_of(model).plain(model)
    return plain, free_axes(plain, FIXED)


def remove_members(model: Model, macs: float) -> Removed:
    """Without the members of least L1 norm."""
    clock = Clock(torch.device("cpu"))
    plain, axes = plain_and_axes(model)
    state = {name: value.detach() for name, value in plain.state_dict().items()}
    scores = magnitude(axes, state)
    clock.mark("copy and scores")
    cost = build_cost_model(plain, axes)
    selection = select(cost, Budget("macs", macs, absolute=True), cost.total("macs"), scores)
    clock.mark("cost and selection")
    shape = shape_of(family_of(plain).axes(plain)) | shape_of(axes, selection)
    removed = build(model, shape, remove(axes, state, selection))
    clock.mark("removal")
    return Removed(removed, selection, clock.seconds())


def gated(model: Model, selection: Selection) -> Model:
    """The original in its full size, with the gates of exactly these members open."""
    plain, axes = plain_and_axes(model)
    gates = Gates(axes)
    attach(plain, gates)
    gates.evaluate(selection, floor=1.0)
    return plain


@torch.inference_mode()
def difference(removed: Model, masked: Model, waveforms: Tensor) -> float:
    """The largest ||a - b|| / ||b|| over all hidden states; waveforms [batch, samples]."""
    inputs: dict[str, Any] = {"input_values": waveforms}
    states = zip(*(family_of(model).hidden_states(model, inputs) for model in (removed, masked)), strict=True)
    return max(float((a - b).norm() / b.norm()) for a, b in states)
