"""The cost model of a real model: parameter shapes read, positions per second of audio measured."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from diminuendo.families.family import Family, Model
from diminuendo.families.inputs import SAMPLING_RATE
from diminuendo.families.registry import family_of
from diminuendo.families.transducer import rates, run
from diminuendo.structure.axis import Axis
from diminuendo.structure.cost import CostModel, cost_model
from diminuendo.structure.latency import LatencyTable

SECONDS = 10.0


class _Runner(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Mapping[str, Tensor]) -> Any:
        return run(self.model, inputs)


def build_cost_model(model: Model, axes: Sequence[Axis] | None = None, table: LatencyTable | None = None) -> CostModel:
    """Expected and exact cost of `model` (as its family's `plain` gives it) by the sizes of `axes` (None: all).

    MACs are those of a clip of 10 s, per second, as torch's flop counter counts them. Latency is that of what runs once
    for every frame.

    table: of latencies, if their cost is asked for.
    """
    family = family_of(model)
    positions: dict[str, float] = {}

    def count(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            width = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            assert isinstance(width, int)
            positions[f"{name}.weight"] = output.numel() / width / SECONDS

        return hook

    hooks = [
        module.register_forward_hook(count(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)
    ]
    samples = int(SECONDS * SAMPLING_RATE)
    # Only sizes matter: on the meta device nothing is computed.
    tensors = {
        f"model.{name}": value.to("meta") for name, value in chain(model.named_parameters(), model.named_buffers())
    }
    inputs = {name: value.to("meta") for name, value in family.example(model, samples).items()}
    try:
        with torch.inference_mode():
            functional_call(_Runner(model), tensors, (inputs,))
    finally:
        for hook in hooks:
            hook.remove()
    frames = int(family.frame_lengths(model, torch.tensor([samples]))[0])
    modules = _timed_modules(model, family, list(positions))
    positions |= rates(model, frames / SECONDS)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    axes = family.axes(model) if axes is None else axes
    cost = cost_model(axes, shapes, positions, family.products(model, frames, SECONDS), modules)
    return replace(cost, table=table)


def _timed_modules(model: Model, family: Family, weights: Sequence[str]) -> dict[str, str]:
    """The module whose time each of the weights that `run` meets is a part of; and each product, by its axis.

    A sublayer is one. So is, of what is in none, the largest module around a single weight, with its norms and its
    activation.
    """
    axes = family.declared(model)
    # The first slice is of the sublayer itself; of its norm are the last.
    paths = {axis.name: _path(axis.slices[0].parameter, axis.name) for axis in axes if axis.kind == "sublayer"}
    owner = {weight: path for weight in weights for path in paths.values() if weight.startswith(f"{path}.")}
    outside = [weight for weight in weights if weight not in owner]
    around = Counter(path for weight in outside for path in _ancestors(weight))
    for weight in outside:
        alone = [path for path in _ancestors(weight) if around[path] == 1 and not _has_layers(model, path)]
        owner[weight] = min(alone, key=len)
    return owner | {axis.name: paths[axis.parent] for axis in axes if axis.parent in paths}


def _path(parameter: str, name: str) -> str:
    return parameter[: parameter.index(name) + len(name)]


def _ancestors(weight: str) -> list[str]:
    """The paths of all modules around a parameter."""
    parts = weight.split(".")[:-1]
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _has_layers(model: Model, path: str) -> bool:
    """Whether a module is a list, which is never called, or holds one, from which what is alone now may have gone."""
    return any(isinstance(inside, nn.ModuleList) for inside in model.get_submodule(path).modules())
