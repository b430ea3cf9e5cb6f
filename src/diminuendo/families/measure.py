"""The cost model of a real model: parameter shapes read, positions per second of audio measured."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from diminuendo.families.family import Family, Model
from diminuendo.families.inputs import SAMPLING_RATE
from diminuendo.families.registry import family_of
from diminuendo.structure.axis import Axis
from diminuendo.structure.cost import CostModel, cost_model

SECONDS = 10.0


class _Runner(nn.Module):
    def __init__(self, model: Model, family: Family) -> None:
        super().__init__()
        self.model, self.family = model, family

    def forward(self, inputs: Mapping[str, Tensor]) -> Any:
        return self.family.run(self.model, inputs)


def build_cost_model(model: Model, axes: Sequence[Axis] | None = None) -> CostModel:
    """Expected and exact cost of `model` (as its family's `plain` gives it) by the sizes of `axes` (None: all).

    MACs are those of a clip of 10 s, per second, as torch's flop counter counts them.
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
            functional_call(_Runner(model, family), tensors, (inputs,))
    finally:
        for hook in hooks:
            hook.remove()
    frames = int(family.frame_lengths(model, torch.tensor([samples]))[0])
    positions |= family.rates(model, frames / SECONDS)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    axes = family.axes(model) if axes is None else axes
    return cost_model(axes, shapes, positions, family.products(model, frames, SECONDS))
