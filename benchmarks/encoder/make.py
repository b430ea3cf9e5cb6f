"""The models: by every method a small one from the teacher."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet

from benchmarks.encoder.cells import ABLATIONS, Cell
from diminuendo.api import compress_config
from diminuendo.families import Model, build, build_cost_model, family_of
from diminuendo.importance import magnitude
from diminuendo.profiling.count import count_parameters
from diminuendo.pruning.budget import Budget, parse_budget, select
from diminuendo.pruning.removal import remove
from diminuendo.structure.axis import Axis, Selection
from diminuendo.structure.shape import Shape, shape_of
from diminuendo.students.shape import NAMED
from diminuendo.students.student import make_student
from diminuendo.training.compress import compress
from diminuendo.training.compress_config import CompressConfig
from diminuendo.training.config import LoopConfig
from diminuendo.training.distil import DistilConfig, distil
from diminuendo.training.removing import Source, free_axes

SEED = 1  # of random weights
LOOP = LoopConfig(device="cpu", quiet=True)
# Of every run: batches of half of what a step of the teacher hears, so that a cell takes minutes.
BATCHES: dict[str, Any] = {"seconds_per_batch": 10.0, "max_seconds": 4.0, "precision": "bf16"}


def make(cell: Cell, teacher: Source, cuts: CutSet, out: Path, learned: Shape | None = None) -> dict[str, Any]:
    """Trains the cell's model into `out`, going on where it was; the run's result.

    learned: for learned shapes, what the joint run of that size has found.
    """
    if cell.method in ("joint", "prune-only"):
        return compress(teacher, cuts, out, joint_config(cell), loop=LOOP, resume=True)
    budget = parse_budget(f"params={cell.keep}")
    if cell.method == "fixed":
        params = budget.amount(count_parameters(teacher.model))
        student = make_student(teacher.model, NAMED["thin"], params, seed=cell.run_seed).model
    elif cell.method == "one-shot":
        student = one_shot(teacher.model, budget, ABLATIONS.get(cell.ablation, {}).get("fixed", ()))
    else:
        assert learned is not None
        fresh = cell.method == "learned-shape-fresh"
        student = in_shape(fresh_layers(teacher, cell.run_seed) if fresh else teacher.model, learned)
    config = DistilConfig(steps=cell.steps, learning_rate=cell.rate, seed=cell.run_seed, **BATCHES)
    return distil(student, teacher, cuts, out, config, loop=LOOP, resume=True)


def joint_config(cell: Cell) -> CompressConfig:
    """Two thirds of the steps are joint, as published; the second stage has half of the rate."""
    joint = cell.steps * 2 // 3
    settings: dict[str, Any] = {
        "keep": f"params={cell.keep}",
        "steps": joint,
        "distil_steps": cell.steps - joint,
        "learning_rate": cell.rate,
        "distil_learning_rate": cell.rate / 2,
        "seed": cell.run_seed,
        "objective": "masked_prediction" if cell.method == "prune-only" else "distillation",
        **BATCHES,
        **ABLATIONS.get(cell.ablation, {}),
    }
    return compress_config(**settings)


def one_shot(teacher: Model, budget: Budget, fixed: Sequence[str] = ()) -> Model:
    """The teacher without its members of least magnitude, to the budget at once. Kinds of axes in `fixed` keep all."""
    axes, state, scores = _ranked(teacher)
    scores |= {axis.name: torch.full((axis.size,), torch.inf) for axis in axes if axis.kind in fixed}
    cost = build_cost_model(family_of(teacher).plain(teacher), axes)
    return _cut(teacher, axes, state, select(cost, budget, count_parameters(teacher), scores))


def in_shape(teacher: Model, shape: dict[str, Any]) -> Model:
    """The teacher's members of most magnitude, as many as a shape has; of the widths of a thin student, any weights."""
    if "hidden_size" in shape:
        cls: Any = family_of(teacher).encoder_class
        thin: Model = cls(type(teacher.config)(**teacher.config.to_dict() | shape)).eval()
        return thin
    axes, state, scores = _ranked(teacher)
    return _cut(teacher, axes, state, {axis.name: _largest(scores[axis.name], shape[axis.name]) for axis in axes})


def _ranked(teacher: Model) -> tuple[tuple[Axis, ...], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    plain = family_of(teacher).plain(teacher)
    axes = free_axes(plain, {"width"})
    state = {name: value.detach() for name, value in plain.state_dict().items()}
    return axes, state, magnitude(axes, state)


def _cut(teacher: Model, axes: tuple[Axis, ...], state: dict[str, torch.Tensor], selection: Selection) -> Model:
    shape = shape_of(family_of(teacher).axes(teacher)) | shape_of(axes, selection)
    return build(teacher, shape, remove(axes, state, selection))


def _largest(scores: torch.Tensor, kept: int | list[int]) -> torch.Tensor:
    if isinstance(kept, list):  # positions that matter
        return torch.zeros(len(scores), dtype=torch.bool).index_fill(0, torch.tensor(kept, dtype=torch.long), True)
    best = scores.argsort(descending=True, stable=True)[:kept]
    return torch.zeros(len(scores), dtype=torch.bool).index_fill(0, best, True)


def fresh_layers(teacher: Source, seed: int) -> Model:
    """The teacher's convolutions and else fresh weights, as a thin student starts."""
    model = random_encoder(teacher, seed).model
    model.feature_extractor.load_state_dict(teacher.model.feature_extractor.state_dict())
    return model


def random_encoder(teacher: Source, seed: int) -> Source:
    torch.manual_seed(seed)
    cls: Any = family_of(teacher.model).encoder_class
    return replace(teacher, model=cls(teacher.model.config).eval())
