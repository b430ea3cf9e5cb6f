"""From a model in memory to one of a quarter of its parameters: what it takes, and whether it is the same function."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.step.clock import Clock
from diminuendo.families import Model, build, build_cost_model, family_of
from diminuendo.families.inputs import SAMPLING_RATE
from diminuendo.importance import Scores, magnitude
from diminuendo.profiling.count import count_parameters, saved_bytes
from diminuendo.pruning.budget import Budget, select
from diminuendo.pruning.gating import Gates, attach, plain_state
from diminuendo.pruning.removal import remove
from diminuendo.structure.axis import Selection
from diminuendo.structure.cost import CostModel
from diminuendo.structure.shape import Shape, shape_of
from diminuendo.training.removing import free_axes

KEPT = 0.25
ROUND_TO = 8
COMPARED_SECONDS = 3


@dataclass(frozen=True)
class Gated:
    """A plain copy of a model under gates, and what a selection is made from."""

    source: Model
    model: Model
    gates: Gates
    cost: CostModel
    scores: Scores
    whole: Shape

    def select(self, round_to: int) -> Selection:
        return select(self.cost, Budget("params", KEPT), count_parameters(self.source), self.scores, round_to)

    def removed(self, selection: Selection, clock: Clock) -> Model:
        """The smaller model; it has tensors of the gated one, where they are whole."""
        self.gates.evaluate(selection)
        state = remove(self.gates.axes, plain_state(self.model), selection)
        clock.mark("removal")
        smaller = build(self.source, {**self.whole, **shape_of(self.gates.axes, selection)}, state)
        clock.mark("build")
        return smaller


def gated(model: Model, clock: Clock, *, width: bool = False) -> Gated:
    """Gates are drawn uneven, so that what they multiply shows in a comparison; members are chosen by magnitude.

    width: whether the residual stream becomes narrower too.
    """
    plain = family_of(model).plain(model)
    clock.mark("plain copy")
    axes = free_axes(plain, () if width else {"width"})
    whole = shape_of(family_of(plain).axes(plain))
    cost = build_cost_model(plain, axes)
    clock.mark("axes and cost")
    scores = magnitude(axes, plain.state_dict())
    clock.mark("magnitude")
    gates = Gates(axes)
    with torch.no_grad():
        gates.log_alpha.normal_(generator=torch.Generator().manual_seed(0))
    attach(plain, gates)
    clock.mark("gates")
    return Gated(model, plain, gates, cost, scores, whole)


def memory(field: str) -> int:
    """VmRSS or VmHWM (its highest so far) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def remove_a_quarter(model: Model, *, width: bool = False) -> tuple[Gated, Model, dict[str, Any]]:
    """The gated model, the smaller one, and seconds by step and memory.

    Memory is the highest of the process less what it had with the model loaded, so the model itself is not in it.
    """
    before = memory("VmRSS")
    clock = Clock(torch.device("cpu"))
    found = gated(model, clock, width=width)
    selection = found.select(ROUND_TO)
    clock.mark("selection")
    smaller = found.removed(selection, clock)
    seconds = clock.seconds()
    took = memory("VmHWM") - before
    return (
        found,
        smaller,
        {
            "model_bytes": saved_bytes(model),
            "removal_seconds": {part: round(value, 3) for part, value in seconds.items()},
            "removal_memory_bytes": took,
            "removal_memory_over_model": round(took / saved_bytes(model), 3),
            "kept_by_kind": _kept_by_kind(found, selection),
        },
    )


def _kept_by_kind(found: Gated, selection: Selection) -> dict[str, float]:
    sizes: dict[str, list[tuple[int, int]]] = {}
    for axis in found.gates.axes:
        sizes.setdefault(axis.kind, []).append((int(selection[axis.name].sum()), axis.size))
    return {kind: round(sum(k for k, _ in same) / sum(n for _, n in same), 4) for kind, same in sizes.items()}


@torch.inference_mode()
def largest_error(
    smaller: Model,
    gated_model: Model,
    inputs: Mapping[str, torch.Tensor] | None = None,
    width: torch.Tensor | None = None,
) -> float:
    """The largest ||a - b|| / ||b|| over hidden states, on 3 s of noise.

    width: which members of the gated model's residual stream are there in the smaller one, if not all.
    """
    family = family_of(gated_model)
    given = family.example(gated_model, COMPARED_SECONDS * SAMPLING_RATE) if inputs is None else inputs
    pairs = zip(family.hidden_states(smaller, given), family.hidden_states(gated_model, given), strict=True)
    kept = slice(None) if width is None else width
    errors = [float((a - b[..., kept]).norm() / b[..., kept].norm()) for a, b in pairs]
    assert all(math.isfinite(error) for error in errors)
    return max(errors)
