"""How much stays: the asked budget, the multipliers that steer towards it, the selection that meets it exactly."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diminuendo.errors import UserError
from diminuendo.structure.axis import Axis, Selection
from diminuendo.structure.cost import CostModel

CostKind = Literal["params", "macs"]
_KINDS: tuple[CostKind, ...] = ("params", "macs")
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}


@dataclass(frozen=True)
class Budget:
    """kind: what is counted. kept: a fraction of the original in (0, 1], or an absolute number (MACs: per second)."""

    kind: CostKind
    kept: float
    absolute: bool = False

    def amount(self, total: float) -> float:
        """The budget in parameters or MACs per second. UserError if it exceeds `total`, the original's."""
        if self.absolute and self.kept > total:
            raise UserError(
                f"--keep {self}: the model has only {total:.4g} {self.kind}; give less, or a fraction in (0, 1]"
            )
        return self.kept if self.absolute else self.kept * total

    def __str__(self) -> str:
        return f"{self.kind}={self.kept:g}"


def parse_budget(text: str) -> Budget:
    """`params=0.25`, `params=23.5M`, `macs=0.3`, `macs=1.2G/s`. UserError for anything else."""
    match = re.fullmatch(r"\s*(\w+)\s*=\s*([-+.\deE]+?)\s*([kKmMgG]?)(/s)?\s*", text)
    if match is None:
        raise UserError(f"--keep {text}: expected a budget like params=0.25, params=23.5M, macs=0.3 or macs=1.2G/s")
    name, digits, unit, per_second = match.groups()
    kind = next((known for known in _KINDS if known == name), None)
    if kind is None:
        raise UserError(f"--keep {text}: unknown budget {name!r}; known are {', '.join(_KINDS)}")
    try:
        number = float(digits)
    except ValueError:
        raise UserError(f"--keep {text}: {digits!r} is not a number; expected for example {kind}=0.25") from None
    absolute = bool(unit or per_second)
    if absolute and number <= 0:
        raise UserError(f"--keep {text}: an absolute size must be above 0")
    if not absolute and not 0 < number <= 1:
        raise UserError(
            f"--keep {text}: kept fraction must lie in (0, 1], got {number:g}; for an absolute size write {kind}=23.5M"
        )
    return Budget(kind, number * _UNITS[unit.lower()], absolute)


class Multipliers(nn.Module):
    """The two Lagrange multipliers of l1 (s - t) + l2 (s - t)^2; they ascend (an optimiser group with maximize=True).

    s and t are removed fractions of the cost, expected and asked for (DPHuBERT, section 2.3).
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Parameter(torch.zeros(()))
        self.quadratic = nn.Parameter(torch.zeros(()))

    def forward(self, removed: Float[Tensor, ""], target: float) -> Float[Tensor, ""]:
        gap = removed - target
        return self.linear * gap + self.quadratic * gap.square()


@dataclass(frozen=True)
class _Unit:
    """A group of members of one axis that stays or goes together, so that kept sizes are multiples of the rounding."""

    axis: int
    members: tuple[int, ...]
    score: float


def _units(axes: Sequence[Axis], scores: Mapping[str, Tensor], round_to: int) -> tuple[list[_Unit], list[int]]:
    """The units of every axis, best first, and the sizes that stay in any case."""
    units, floor = [], []
    for i, axis in enumerate(axes):
        order = scores[axis.name].argsort(descending=True, stable=True).tolist()
        step = round_to if axis.is_width else 1
        groups = [tuple(order[start : start + step]) for start in range(0, axis.size, step)]
        least = -(-axis.minimum // step)
        floor.append(sum(len(group) for group in groups[:least]))
        # Means of descending scores descend, so an axis always takes its better groups first.
        units += [_Unit(i, group, float(scores[axis.name][list(group)].mean())) for group in groups[least:]]
    units.sort(key=lambda unit: -unit.score)
    return units, floor


def _effective(axes: Sequence[Axis], sizes: Sequence[int]) -> Float[Tensor, " axes"]:
    """Sizes with everything inside a removed sublayer gone too."""
    size_of = {axis.name: float(size) for axis, size in zip(axes, sizes, strict=True)}
    effective = [0.0 if axis.parent and not size_of[axis.parent] else size_of[axis.name] for axis in axes]
    return torch.tensor(effective, dtype=torch.float64)


def smallest_cost(cost: CostModel, kind: CostKind, round_to: int) -> float:
    """What stays when everything goes that may go."""
    scores = {axis.name: torch.zeros(axis.size) for axis in cost.axes}
    _, floor = _units(cost.axes, scores, round_to)
    return float(cost.at_sizes(kind, _effective(cost.axes, floor)))


def check_budget(cost: CostModel, budget: Budget, total: float, round_to: int) -> None:
    """UserError, with the smallest possible size, if the fixed parts alone exceed the budget."""
    least = smallest_cost(cost, budget.kind, round_to)
    if least > budget.amount(total):
        smallest = f"{budget.kind}={least / 1e6:.4g}M" if budget.absolute else f"{budget.kind}={least / total:.4f}"
        raise UserError(
            f"--keep {budget}: less than the parts that cannot be removed; the smallest possible is {smallest}"
        )


def select(
    cost: CostModel, budget: Budget, total: float, scores: Mapping[str, Float[Tensor, " members"]], round_to: int = 8
) -> Selection:
    """Keeps the members of highest score whose cost is within the budget, and as close to it as units allow.

    Members are ordered over all axes by score; sizes of widths are multiples of `round_to` (or the full size). The
    order is cut where the budget is full; then what follows is tried in order too, so that a large unit that does not fit
    (a sublayer) does not leave room unused.
    """
    check_budget(cost, budget, total, round_to)
    axes, limit = cost.axes, budget.amount(total) * (1 + 1e-9)
    units, sizes = _units(axes, scores, round_to)

    def fits(candidate: Sequence[int]) -> bool:
        return float(cost.at_sizes(budget.kind, _effective(axes, candidate))) <= limit

    def with_first(count: int) -> list[int]:
        taken = list(sizes)
        for unit in units[:count]:
            taken[unit.axis] += len(unit.members)
        return taken

    low, high = 0, len(units)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(with_first(middle)) else (low, middle - 1)
    kept, left = with_first(low), units[low:]
    number = {axis.name: i for i, axis in enumerate(axes)}
    progress = True
    while progress:  # a sublayer that comes in late makes room worth trying for what is inside it
        progress, full, still_left = False, set(), []
        for unit in left:
            parent = axes[unit.axis].parent
            if unit.axis in full or (parent is not None and not kept[number[parent]]):
                still_left.append(unit)
                continue
            kept[unit.axis] += len(unit.members)
            if fits(kept):
                progress = True
            else:
                kept[unit.axis] -= len(unit.members)
                full.add(unit.axis)  # its next groups cost no less
                still_left.append(unit)
        left = still_left

    final = _effective(axes, kept).long().tolist()
    selection = {}
    for axis, size in zip(axes, final, strict=True):
        best = scores[axis.name].argsort(descending=True, stable=True)[:size]
        selection[axis.name] = torch.zeros(axis.size, dtype=torch.bool).index_fill(0, best.cpu(), True)
    return selection


def selected_cost(cost: CostModel, kind: CostKind, selection: Selection) -> float:
    """The exact cost of what a selection leaves."""
    sizes = torch.tensor([float(selection[axis.name].sum()) for axis in cost.axes])
    return float(cost.at_sizes(kind, sizes))
