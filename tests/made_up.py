"""Latencies that nobody measured."""

from typing import Any

from diminuendo.structure.cost import CostModel
from diminuendo.structure.latency import Curve, LatencyTable


def made_up(cost: CostModel, *_: Any, fixed: float = 0.01, slope: float = 1e-6, **__: Any) -> LatencyTable:
    """Of every module some milliseconds that it always takes and some by its MACs; nothing of the rest."""
    macs = cost.macs_by_module(cost.full_sizes).tolist()
    curves = [
        Curve((module,), (whole / 64, whole), (fixed + slope * whole / 64, fixed + slope * whole))
        for module, whole in zip(cost.modules, macs, strict=True)
    ]
    total = sum(curve.ms[-1] for curve in curves)
    return LatencyTable(total, 1, "cpu", 10.0, tuple(curves), Curve((), (sum(macs),), (0.0,)))
