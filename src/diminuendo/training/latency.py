"""The latency table of a model, measured on models that removal makes of it, and whether its promise was kept."""

import logging
import re
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diminuendo.families import Model, build, family_of
from diminuendo.families.family import shape_before
from diminuendo.families.measure import SECONDS
from diminuendo.profiling.latency import REST, WHOLE, measure_interleaved, time_modules
from diminuendo.pruning.budget import Budget, allowed_sizes
from diminuendo.pruning.factorize import multiply_back
from diminuendo.pruning.removal import remove
from diminuendo.structure.axis import Axis, Selection
from diminuendo.structure.cost import CostModel
from diminuendo.structure.latency import LatencyTable, curve_through
from diminuendo.structure.shape import Shape, shape_of, sizes_of
from diminuendo.training.progress import tracked
from diminuendo.training.removing import gateable

log = logging.getLogger(__name__)

# Eighths: between them matrix units have steps, where a front end has few channels.
FRACTIONS = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0)
ROUNDS = (5, 30)
"""Least and most; between, as many as MEASURING_SECONDS have room for."""
MEASURING_SECONDS = 20.0
OFF_PROMISE = 0.15


def measure_table(
    model: Model, cost: CostModel, *, factored: bool, round_to: int, threads: int, device: str, quiet: bool = False
) -> LatencyTable:
    """How long the parts of a model take when of every axis of `cost` some fraction is left, at least one member.

    Takes some four times the model's memory. Sublayers stay: one that is gone takes no time.
    """
    started = time.monotonic()
    sizes: dict[str, Tensor] = {}
    models: dict[str, Model] = {"itself": model}
    form = gateable(model, factored=factored, meta=True)
    values = values_of(model, form)
    whole: Shape = shape_of(family_of(form).axes(form)) | shape_before(model)
    shapes: list[Shape] = []
    for fraction in FRACTIONS:
        kept = {axis.name: _size(axis, fraction, round_to) for axis in cost.axes}
        selection = {axis.name: torch.arange(axis.size) < kept[axis.name] for axis in cost.axes}
        made, shape = cut(model, values, cost.axes, selection, whole)
        if shape not in shapes:
            shapes.append(shape)
            sizes[str(fraction)] = torch.tensor(list(kept.values()), dtype=torch.float64)
            models[str(fraction)] = made.to(device)
    here = model.device
    try:
        model.to(device)
        time_modules(models, cost.modules, SECONDS, threads, range(1))  # warms up
        rounds = round(MEASURING_SECONDS / (time.monotonic() - started))
        taken = tracked(range(min(max(ROUNDS[0], rounds), ROUNDS[1])), "latency", "rounds", quiet)
        found = time_modules(models, cost.modules, SECONDS, threads, taken)
    finally:
        model.to(here)
    macs = {name: cost.macs_by_module(of).tolist() for name, of in sizes.items()}
    table = _table(cost.modules, macs, found, threads, device)
    log.info(
        "latency of %d kinds of modules at %d sizes, measured in %.0f s (10 s of audio, %s, threads: %d); the model "
        "takes %.4g ms",
        len(table.curves),
        len(sizes),
        time.monotonic() - started,
        device,
        threads,
        table.total_ms,
    )
    return table


def _table(
    modules: tuple[str, ...],
    macs: Mapping[str, list[float]],
    found: Mapping[str, Mapping[str, float]],
    threads: int,
    device: str,
) -> LatencyTable:
    """macs: of each module in every model; found: milliseconds, as `time_modules` gives them."""
    points: dict[str, list[tuple[float, float]]] = {module: [] for module in modules}
    rest = []
    for name, counts in macs.items():
        rest.append((sum(counts), found[name][REST]))
        for module, count in zip(modules, counts, strict=True):
            points[module].append((count, found[name].get(module, 0.0)))
    alike: dict[Any, list[str]] = {}
    for module in modules:
        kind = re.sub(r"\d+", "", module), tuple(f"{count:.9g}" for count, _ in points[module])
        alike.setdefault(kind, []).append(module)
    curves = [curve_through(same, [point for module in same for point in points[module]]) for same in alike.values()]
    return LatencyTable(found["itself"][WHOLE], threads, device, SECONDS, tuple(curves), curve_through((), rest))


def _size(axis: Axis, fraction: float, round_to: int) -> int:
    """The smallest size that selection may give, of at least this fraction and not none."""
    return next(size for size in allowed_sizes(axis, round_to) if size >= max(1, fraction * axis.size))


def values_of(model: Model, form: Model) -> dict[str, Tensor]:
    """A state of the form of `gateable`. Of factors only sizes matter, so no singular values are looked for."""
    state = dict(gateable(model, factored=False).cpu().state_dict())
    generator = torch.Generator().manual_seed(0)  # of its own: a resumed run does not come here
    for name, of in form.state_dict().items():
        if name not in state:
            state[name] = 0.02 * torch.randn(of.shape, generator=generator)
    return {name: state[name] for name in form.state_dict()}


def cut(
    model: Model, values: Mapping[str, Tensor], axes: tuple[Axis, ...], selection: Selection, whole: Shape
) -> tuple[Model, Shape]:
    """What is left of a model, and its shape, without the equality that training asks for. whole: the shape before."""
    state, shape = multiply_back(axes, remove(axes, values, selection), {**whole, **shape_of(axes, selection)})
    return build(model, shape, state), shape


def kept_promise(
    model: Model, removed: Model, shape: Shape, cost: CostModel, budget: Budget, came_as: Model
) -> dict[str, Any]:
    """Latency of a model and of what is left of it, measured in turn, and what the table of `cost` had promised.

    In ms, where the table is of; a warning if they are far from each other. came_as: the teacher, which is `model`
    unless this has filter banks in the place of its convolutions; what is kept is of it.
    """
    table, here = cost.table, model.device
    assert table is not None
    state = {name: value.to(table.device) for name, value in removed.state_dict().items()}
    smaller = build(model, shape, state)  # `removed` has the attention that is the fastest to train
    models = {"teacher": came_as.to(table.device), "student": smaller}
    if came_as is not model:
        models["whole"] = model.to(table.device)
    try:
        found = measure_interleaved(models, table.seconds, table.threads)
    finally:
        for one in (model, came_as):
            one.to(here)
    teacher, student = found["teacher"].p50_ms, found["student"].p50_ms
    promised = float(cost.at_sizes("latency", sizes_of(cost.axes, shape)))
    kept, promised_kept = student / teacher, promised / (table.total_ms if came_as is model else teacher)
    off = student / promised if budget.absolute else kept / promised_kept
    if abs(off - 1) > OFF_PROMISE:
        log.warning(
            "latency: promised %.4g ms (%.3f kept), measured %.4g ms (%.3f kept): was the machine busy? the table had "
            "%.4g ms for the whole model, now it takes %.4g ms",
            promised,
            promised_kept,
            student,
            kept,
            table.total_ms,
            found.get("whole", found["teacher"]).p50_ms,
        )
    figures = {"teacher": teacher, "student": student, "kept": kept, "promised": promised}
    return {**figures, "promised_kept": promised_kept, "threads": table.threads, "device": table.device}
