"""Promised and measured latency: budgets in latency on models of real size, without training.

    python -m benchmarks.latency [NAME ...] [--runs 20]

Weights are random, audio is noise. Of every model a table is measured on one thread, then members are selected by it:
in an order by chance or by magnitude, which take about the same fraction of every axis, and in one that takes much more
of some layers than of others. What is left is timed in turn with the whole model. Each model is a JSON in
results/latency, with what its parts were promised to take and, in processor time of three more runs, took. "Busy" is
the process's share of its thread while latencies were measured.
"""

import argparse
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.families.models import MODELS, Known
from benchmarks.record import RESULTS, record
from diminuendo.families import Model, build_cost_model, family_of
from diminuendo.importance import Scores, at_random, magnitude
from diminuendo.profiling.latency import REST, WHOLE, measure_interleaved, time_modules
from diminuendo.pruning.budget import Budget, select
from diminuendo.structure.axis import Axis
from diminuendo.structure.cost import CostModel
from diminuendo.structure.latency import interpolated
from diminuendo.structure.shape import shape_of, sizes_of
from diminuendo.training.compress_config import CompressConfig
from diminuendo.training.latency import cut, measure_table, values_of
from diminuendo.training.removing import free_axes, gateable

FOLDER = RESULTS / "latency"
ROUND_TO = 8


@dataclass(frozen=True)
class Case:
    """method: of CompressConfig, which says what can go. kept: of the latency."""

    model: Known
    method: str
    kept: tuple[float, ...]
    orders: tuple[str, ...] = ("random", "magnitude", "uneven")


HUBERT = MODELS["hubert-base"]
CONFORMER = Known("wav2vec2-conformer Base, rel-pos", "Wav2Vec2ConformerConfig", "Wav2Vec2ConformerModel")
CASES = {
    "hubert-base": Case(HUBERT, "l0", (0.75, 0.5, 0.3)),
    "hubert-base-lowrank": Case(HUBERT, "lowrank", (0.75, 0.55), ("random", "uneven")),
    "hubert-base-l0+lowrank": Case(HUBERT, "l0+lowrank", (0.5,), ("random", "uneven")),
    "conformer-base": Case(CONFORMER, "l0", (0.75, 0.5, 0.3), ("random", "uneven")),
}


def scores_of(order: str, axes: tuple[Axis, ...], values: Mapping[str, torch.Tensor]) -> Scores:
    if order == "random":
        return at_random(axes, 0)
    if order == "magnitude":
        return magnitude(axes, values)
    generator = torch.Generator().manual_seed(0)
    # Axes differ more than their members do.
    return {axis.name: 2 * _normal(1, generator) + _normal(axis.size, generator) for axis in axes}


def _normal(size: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(size, generator=generator)


def measure(model: Model, case: Case, runs: int) -> dict[str, Any]:
    """Fractions of the whole model's latency, promised and measured, by order and budget."""
    torch.set_num_threads(1)
    config = CompressConfig(method=case.method)  # type: ignore[arg-type]
    form = gateable(model, factored=config.factored, meta=True)
    axes = free_axes(form, config.fixed_kinds)
    cost = build_cost_model(form, axes)
    started = time.perf_counter()
    table = measure_table(model, cost, factored=config.factored, round_to=ROUND_TO, threads=1, device="cpu")
    measuring = time.perf_counter() - started
    cost, values = replace(cost, table=table), values_of(model, form)
    whole = shape_of(family_of(form).axes(form))
    models, selected, selecting = {"whole": model}, {}, 0.0
    for order in case.orders:
        scores = scores_of(order, axes, values)
        for kept in case.kept:
            started = time.perf_counter()
            selection = select(cost, Budget("latency", kept), table.total_ms, scores, ROUND_TO)
            selecting = max(selecting, time.perf_counter() - started)
            name = f"{order} {kept:g}"
            selected[name] = shape_of(axes, selection)
            models[name], _ = cut(model, values, axes, selection, whole)
    clock, cpu = time.perf_counter(), time.process_time()
    latencies = measure_interleaved(models, table.seconds, 1, runs, warmup=1)
    busy = (time.process_time() - cpu) / (time.perf_counter() - clock)
    found = time_modules(models, cost.modules, table.seconds, 1, range(min(runs, 3)))
    results = {}
    for name, shape in selected.items():
        sizes = sizes_of(axes, shape)
        promised, taken = float(cost.at_sizes("latency", sizes)) / table.total_ms, latencies[name].p50_ms
        measured = taken / latencies["whole"].p50_ms
        results[name] = {
            "promised": round(promised, 4),
            "measured": round(measured, 4),
            "measured_over_promised": round(measured / promised, 4),
            "ms": round(taken, 2),
            "macs": round(float(cost.at_sizes("macs", sizes)) / cost.total("macs"), 4),
            "parts": _parts(cost, sizes, found[name], found["whole"][WHOLE]),
        }
    return {
        "method": case.method,
        "threads": 1,
        "runs": runs,
        "busy": round(busy, 3),
        "measuring_seconds": round(measuring, 1),
        "slowest_selection_seconds": round(selecting, 3),
        "table_ms": round(table.total_ms, 2),
        "whole_ms": round(latencies["whole"].p50_ms, 2),
        "results": results,
        "table": table.to_json(),
    }


def _parts(cost: CostModel, sizes: torch.Tensor, found: Mapping[str, float], whole_ms: float) -> dict[str, list[float]]:
    """Promised and measured fractions of the whole model's latency, by kind of module."""
    assert cost.table is not None
    macs = cost.macs_by_module(sizes)
    each = interpolated(cost.table.grid(cost.modules), torch.cat([macs, macs.sum()[None]])).tolist()
    sums: dict[str, list[float]] = {}
    for module, ms in zip((*cost.modules, REST), each, strict=True):
        both = sums.setdefault(re.sub(r"encoder\.layers\.\d+", "encoder.layers.*", module), [0.0, 0.0])
        both[0] += ms / cost.table.total_ms
        both[1] += found.get(module, 0.0) / whole_ms
    return {kind: [round(one, 5) for one in both] for kind, both in sums.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}; all, if none is given")
    parser.add_argument("--runs", type=int, default=20)
    given = parser.parse_args()
    if unknown := set(given.names) - set(CASES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(CASES)}")
    for name in given.names or CASES:
        load, case = os.getloadavg()[0], CASES[name]
        found = measure(case.model.make(), case, given.runs)
        path = record(FOLDER / f"{name}.json", {"load_before": round(load, 2), "model": case.model.title, **found})
        for budget, one in found["results"].items():
            print(f"{name}, {budget}: promised {one['promised']:.3f}, measured {one['measured']:.3f}", flush=True)
        print(path, flush=True)


if __name__ == "__main__":
    main()
