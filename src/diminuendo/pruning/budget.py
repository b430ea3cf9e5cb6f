"""How much stays: the asked budget, the multipliers that steer towards it, the selection that meets it exactly."""

import math
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diminuendo.errors import UserError
from diminuendo.structure.axis import Axis, Selection
from diminuendo.structure.cost import CostModel

CostKind = Literal["params", "macs", "latency"]
_KINDS: tuple[CostKind, ...] = get_args(CostKind)
_SLACK = 1 + 1e-9  # of sums of floats
_NUMBERS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_TIMES = {"ms": 1.0, "s": 1e3}
_ABSOLUTE = {"params": "params=23.5M", "macs": "macs=1.2G/s", "latency": "latency=40ms"}


@dataclass(frozen=True)
class Budget:
    """kind: what is counted. kept: a fraction of the original in (0, 1], or an absolute number.

    MACs are per second of audio, latency is in milliseconds.
    """

    kind: CostKind
    kept: float
    absolute: bool = False

    def amount(self, total: float) -> float:
        """The budget in parameters, MACs per second or ms. UserError if it exceeds `total`, the original's."""
        if self.absolute and self.kept > total:
            has = f"takes only {total:.4g} ms" if self.kind == "latency" else f"has only {total:.4g} {self.kind}"
            raise UserError(f"--keep {self}: the model {has}; give less, or a fraction in (0, 1]")
        return self.kept if self.absolute else self.kept * total

    def __str__(self) -> str:
        if not self.absolute:
            return f"{self.kind}={self.kept:g}"
        if self.kind == "latency":
            return f"latency={self.kept:.10g}ms"
        return f"{self.kind}={self.kept / 1e6:.10g}M{'/s' if self.kind == 'macs' else ''}"


def parse_budget(text: str) -> Budget:
    """`params=0.25`, `params=23.5M`, `macs=0.3`, `macs=1.2G/s`, `latency=0.5`, `latency=40ms`; UserError for others."""
    match = re.fullmatch(r"\s*(\w+)\s*=\s*([-+.\deE]+?)\s*(ms|s|[kKmMgG]?)(/s)?\s*", text)
    if match is None:
        raise UserError(
            f"--keep {text}: expected a budget like params=0.25, params=23.5M, macs=0.3, macs=1.2G/s or latency=40ms"
        )
    name, digits, unit, per_second = match.groups()
    kind = next((known for known in _KINDS if known == name), None)
    if kind is None:
        raise UserError(f"--keep {text}: unknown budget {name!r}; known are {', '.join(_KINDS)}")
    try:
        number = float(digits)
    except ValueError:
        raise UserError(f"--keep {text}: {digits!r} is not a number; expected for example {kind}=0.25") from None
    if per_second and kind != "macs":
        verb = "is" if kind == "latency" else "are"
        wanted = text.strip().removesuffix("/s")
        raise UserError(f"--keep {text}: {kind} {verb} not counted per second; write {wanted}")
    scale = (_TIMES | {"": 1.0} if kind == "latency" else _NUMBERS).get(unit.lower())
    if scale is None:
        raise UserError(f"--keep {text}: {unit!r} is no unit of {kind}; write for example {_ABSOLUTE[kind]}")
    absolute = bool(unit or per_second)
    if absolute and number <= 0:
        raise UserError(f"--keep {text}: an absolute size must be above 0")
    if not absolute and not 0 < number <= 1:
        raise UserError(
            f"--keep {text}: kept fraction must lie in (0, 1], got {number:g}; "
            f"for an absolute size write {_ABSOLUTE[kind]}"
        )
    return Budget(kind, number * scale, absolute)


# A convolution on a CPU works in blocks of 16 channels, and where their number is a prime from 11 on (176 channels,
# 208, 272, 304, 368, 464, 496) it takes half as long again. An even number of blocks never is.
WIDE, EVEN = 128, 32


class Multipliers(nn.Module):
    """The two Lagrange multipliers of l1 (s - t) + l2 (s - t)^2; they ascend (an optimiser group with maximize=True).

    s and t are removed fractions of the cost, expected and asked for (DPHuBERT, section 2.3). Published, the term is
    two-sided: where s is above t it opens gates, those of useless members as fast as any. Ours is that of the
    constraint s >= t: once it is met nothing pulls, and l1 stays at or below 0 (`clamp`, after every step).
    """

    def __init__(self, *, two_sided: bool = False) -> None:
        super().__init__()
        self.two_sided = two_sided
        self.linear = nn.Parameter(torch.zeros(()))
        self.quadratic = nn.Parameter(torch.zeros(()))

    def forward(self, removed: Float[Tensor, ""], target: float) -> Float[Tensor, ""]:
        gap = removed - target
        short = gap if self.two_sided else gap.clamp(max=0.0)
        return self.linear * (short + (gap - short).detach()) + self.quadratic * short.square()

    @torch.no_grad()
    def clamp(self) -> None:
        """Keeps l1 from pulling gates open."""
        if not self.two_sided:
            self.linear.clamp_(max=0.0)


def allowed_sizes(axis: Axis, round_to: int) -> list[int]:
    """What an axis may shrink to, smallest first: multiples of the rounding where hardware cares, and its full size."""
    step = round_to if axis.is_width else 1
    if axis.kind == "channels" and axis.size >= WIDE and round_to > 1:
        step = math.lcm(round_to, EVEN)
    return [size for size in (*range(0, axis.size, step), axis.size) if size >= axis.minimum]


@dataclass(frozen=True)
class _Step:
    """An axis grows to `size` members. share: the size as a fraction of the axis."""

    axis: int
    size: int
    score: float
    share: float


def _steps(axes: Sequence[Axis], scores: Mapping[str, Tensor], round_to: int) -> list[_Step]:
    """Every step of every axis, best first.

    A step's score is the mean of its members', but never above the score of the sublayer around them: what is inside
    a bad sublayer is worth no more than the sublayer. Equal scores (all gates at their bound) grow all axes evenly.
    """
    steps = []
    for i, axis in enumerate(axes):
        ordered = scores[axis.name].sort(descending=True).values.tolist()
        most = math.inf if axis.parent is None else float(scores[axis.parent])
        for before, size in pairwise(allowed_sizes(axis, round_to)):
            score = min(most, sum(ordered[before:size]) / (size - before))
            steps.append(_Step(i, size, score, size / axis.size))
    return sorted(steps, key=lambda step: (-step.score, step.share))


class _Sizes:
    """The sizes of all axes while a selection grows. A sublayer comes with the first step inside it."""

    def __init__(self, cost: CostModel, kind: CostKind, round_to: int) -> None:
        self.cost, self.kind = cost, kind
        number = {axis.name: i for i, axis in enumerate(cost.axes)}
        self.parents = [None if axis.parent is None else number[axis.parent] for axis in cost.axes]
        self.smallest = [allowed_sizes(axis, round_to)[0] for axis in cost.axes]

    def grown(self, sizes: Sequence[int], steps: Sequence[_Step]) -> list[int]:
        new = list(sizes)
        for step in steps:
            new[step.axis] = step.size
            parent = self.parents[step.axis]
            if parent is not None:
                new[parent] = 1
        return new

    def effective(self, sizes: Sequence[int]) -> list[int]:
        """With everything inside a removed sublayer gone too."""
        return [
            size if parent is None or sizes[parent] else 0 for size, parent in zip(sizes, self.parents, strict=True)
        ]

    def price(self, sizes: Sequence[int]) -> float:
        return float(self.cost.at_sizes(self.kind, torch.tensor(self.effective(sizes), dtype=torch.float64)))


def smallest_cost(cost: CostModel, kind: CostKind, round_to: int) -> float:
    """What stays when everything goes that may go."""
    sizes = _Sizes(cost, kind, round_to)
    return sizes.price(sizes.smallest)


def check_budget(cost: CostModel, budget: Budget, total: float, round_to: int) -> None:
    """UserError, with the smallest possible size, if the fixed parts alone exceed the budget."""
    least = smallest_cost(cost, budget.kind, round_to)
    if least > budget.amount(total) * _SLACK:
        grain = 1e-4 if not budget.absolute else 0.01 if budget.kind == "latency" else 100.0
        amount = least if budget.absolute else least / total
        smallest = replace(budget, kept=math.ceil(amount / grain) * grain)  # up: what the message offers is accepted
        raise UserError(
            f"--keep {budget}: less than the parts that cannot be removed; the smallest possible is {smallest}"
        )


def select(
    cost: CostModel, budget: Budget, total: float, scores: Mapping[str, Float[Tensor, " members"]], round_to: int = 8
) -> Selection:
    """Keeps the members of highest score whose cost is within the budget, and as close to it as steps allow.

    Members are ordered over all axes by score; sizes of widths are multiples of `round_to` (or the full size). The
    order is cut where the budget is full; then what follows is tried in order too, so that a large step that does not
    fit (a head) does not leave room unused: at the end no axis can take its next step. A sublayer of low score does not
    come back for the room that its bare output bias would find.
    """
    check_budget(cost, budget, total, round_to)
    sizes, steps = _Sizes(cost, budget.kind, round_to), _steps(cost.axes, scores, round_to)
    limit = budget.amount(total) * _SLACK
    count = bisect_right(
        range(len(steps) + 1), limit, key=lambda count: sizes.price(sizes.grown(sizes.smallest, steps[:count]))
    )
    kept = sizes.grown(sizes.smallest, steps[: count - 1])
    closed = {parent for parent in sizes.parents if parent is not None}
    for step in steps[count - 1 :]:
        if step.axis not in closed:
            tried = sizes.grown(kept, [step])
            if sizes.price(tried) <= limit:
                kept = tried
            else:
                closed.add(step.axis)  # its next steps cost no less, now or later

    selection = {}
    for axis, size in zip(cost.axes, sizes.effective(kept), strict=True):
        best = scores[axis.name].argsort(descending=True, stable=True)[:size]
        selection[axis.name] = torch.zeros(axis.size, dtype=torch.bool).index_fill(0, best.cpu(), True)
    return selection


def selected_cost(cost: CostModel, kind: CostKind, selection: Selection) -> float:
    """The exact cost of what a selection leaves."""
    sizes = torch.tensor([float(selection[axis.name].sum()) for axis in cost.axes])
    return float(cost.at_sizes(kind, sizes))
