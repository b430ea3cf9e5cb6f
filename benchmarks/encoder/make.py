"""The models: the teacher, and by every method a small one from it."""

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
from diminuendo.structure.shape import Shape, shape_of
from diminuendo.students.deep_thin import deep_thin
from diminuendo.training.compress import compress
from diminuendo.training.compress_config import CompressConfig
from diminuendo.training.config import LoopConfig
from diminuendo.training.distil import DistilConfig, distil
from diminuendo.training.pretrain import pretrain
from diminuendo.training.pretrain_config import PretrainConfig
from diminuendo.training.two_stages import Source

ENCODER = "tiny-hubert"
PRETRAINING = PretrainConfig(
    steps=40_000, front_end=0.1, iteration_1=0.9, centred=True, clip_weights=(0.3, 0.3), precision="bf16"
)
SEED = 1  # of random weights
LOOP = LoopConfig(device="cpu", quiet=True)


def make_teacher(cuts: CutSet, out: Path) -> dict[str, Any]:
    return pretrain(ENCODER, cuts, out, PRETRAINING, loop=LoopConfig(device="cpu"), resume=True)


def make_warmed_up(cuts: CutSet, out: Path) -> dict[str, Any]:
    """The teacher as it was after the warm-up of its front end."""
    steps = PRETRAINING.stage_steps["front_end"]
    config = replace(PRETRAINING, steps=steps, front_end=1.0, iteration_1=0.0)
    return pretrain(ENCODER, cuts, out, config, loop=LOOP, resume=True)


def make(cell: Cell, teacher: Source, cuts: CutSet, out: Path, learned: Shape | None = None) -> dict[str, Any]:
    """Trains the cell's model into `out`, going on where it was; the run's result.

    learned: for learned shapes, what the joint run of that size has found.
    """
    if cell.method in ("joint", "prune-only"):
        return compress(teacher, cuts, out, joint_config(cell), loop=LOOP, resume=True)
    budget = parse_budget(f"params={cell.keep}")
    if cell.method == "fixed":
        student = deep_thin(teacher.model, budget.amount(count_parameters(teacher.model)), seed=cell.run_seed)
    else:
        fresh = cell.method == "learned-shape-fresh"
        start = fresh_layers(teacher, cell.run_seed) if fresh else teacher.model
        student = cut(start, budget, learned, ABLATIONS.get(cell.ablation, {}).get("fixed", ()))
    config = DistilConfig(
        steps=cell.steps,
        learning_rate=cell.rate,
        seconds_per_batch=PRETRAINING.seconds_per_batch,
        max_seconds=PRETRAINING.max_seconds,
        precision="bf16",
        seed=cell.run_seed,
    )
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
        "seconds_per_batch": PRETRAINING.seconds_per_batch,
        "max_seconds": PRETRAINING.max_seconds,
        "precision": "bf16",
        "seed": cell.run_seed,
        "objective": "masked_prediction" if cell.method == "prune-only" else "distillation",
        **ABLATIONS.get(cell.ablation, {}),
    }
    return compress_config(**settings)


def cut(teacher: Model, budget: Budget, learned: Shape | None = None, fixed: Sequence[str] = ()) -> Model:
    """The teacher without its members of least magnitude: to the budget in one shot, or to a shape that was learned.

    fixed: kinds of axes that keep all members, where the shape is not a learned one.
    """
    family = family_of(teacher)
    plain = family.plain(teacher)
    axes = family.axes(plain)
    scores = magnitude(axes, plain.state_dict())
    scores |= {axis.name: torch.full((axis.size,), torch.inf) for axis in axes if axis.kind in fixed}
    if learned is None:
        selection = select(build_cost_model(plain), budget, count_parameters(teacher), scores)
    else:
        selection = {axis.name: _largest(scores[axis.name], learned[axis.name]) for axis in axes}
    state = remove(axes, {name: value.detach() for name, value in plain.state_dict().items()}, selection)
    return build(family, teacher.config, shape_of(axes, selection), state, recogniser=False)


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
