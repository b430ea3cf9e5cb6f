"""A table of latencies, measured on one machine: how long a module takes at the sizes that it was measured at.

A module's size is measured in its own multiply-accumulates, whatever goes of it: heads, neurons, channels, ranks. So
the cost model's polynomials find the place in the table, for exact sizes and in expectation, and latency has gradients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Curve:
    """Milliseconds by multiply-accumulates per second of audio, both ascending; linear between.

    modules: whose it is; modules of one kind and size share theirs.
    """

    modules: tuple[str, ...]
    macs: tuple[float, ...]
    ms: tuple[float, ...]


@dataclass(frozen=True)
class LatencyTable:
    """The latency of one clip of `seconds`, batch 1, on `threads` threads of the CPU or on a GPU.

    total_ms: of the model as it came. curves: of its modules, each in one. rest: of what is in none of them, by the
    MACs of all together.
    """

    total_ms: float
    threads: int
    device: str
    seconds: float
    curves: tuple[Curve, ...]
    rest: Curve

    def grid(self, modules: Sequence[str]) -> Float[Tensor, "2 curves points"]:
        """MACs and milliseconds of the curves of these modules and, last, of the rest, for `interpolated`.

        A module without MACs is gone and takes no time; the rest never takes less than the least that was measured.
        Beyond the largest size time is proportional to MACs.
        """
        of = {module: curve for curve in self.curves for module in curve.modules}
        rows = [[(0.0, 0.0), *zip(of[name].macs, of[name].ms, strict=True)] for name in modules]
        rows.append([(0.0, self.rest.ms[0]), *zip(self.rest.macs, self.rest.ms, strict=True)])
        most = max(map(len, rows)) + 1
        for row in rows:
            macs, ms = row[-1]
            row += [(times * macs, times * ms) for times in range(2, 2 + most - len(row))]
        return torch.tensor(rows, dtype=torch.float64).permute(2, 0, 1)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "LatencyTable":
        *curves, rest = [
            Curve(tuple(one["modules"]), tuple(one["macs"]), tuple(one["ms"]))
            for one in (*found["curves"], found["rest"])
        ]
        return cls(**{**found, "curves": tuple(curves), "rest": rest})


def interpolated(grid: Float[Tensor, "2 curves points"], macs: Float[Tensor, " curves"]) -> Float[Tensor, " curves"]:
    """Milliseconds of every curve at its MACs; differentiable in these."""
    places = torch.searchsorted(grid[0].contiguous(), macs.detach()[:, None], right=True).clamp(1, grid.shape[2] - 1)
    (x0, y0), (x1, y1) = (grid.gather(2, i.expand(2, -1, -1))[..., 0] for i in (places - 1, places))
    ms: Tensor = y0 + (macs - x0) * (y1 - y0) / (x1 - x0)
    return ms


def curve_through(modules: Sequence[str], points: Sequence[tuple[float, float]]) -> Curve:
    """The curve that never falls and is nearest to measured points (MACs, ms): means of those at one place or falling.

    That a larger module was faster is noise, and a selection that grows relies on costs that do.
    """
    at: dict[float, list[float]] = {}
    for macs, ms in sorted(points):
        at.setdefault(float(f"{macs:.9g}"), []).append(ms)
    blocks: list[tuple[list[float], list[float]]] = []  # places, times
    for macs, found in at.items():
        block = ([macs], found)
        while blocks and fmean(blocks[-1][1]) >= fmean(block[1]):
            before = blocks.pop()
            block = (before[0] + block[0], before[1] + block[1])
        blocks.append(block)
    level = {macs: fmean(times) for places, times in blocks for macs in places}
    return Curve(tuple(modules), tuple(level), tuple(level.values()))
