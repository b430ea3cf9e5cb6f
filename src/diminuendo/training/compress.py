"""Compression from a model and audio to a smaller model in a directory."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet

from diminuendo.distillation.hidden import default_layers
from diminuendo.errors import UserError
from diminuendo.export.huggingface import save
from diminuendo.families import Model, build_cost_model, encoder_config, family_of
from diminuendo.families.inputs import SAMPLING_RATE
from diminuendo.profiling.count import count_macs_per_second, count_parameters
from diminuendo.profiling.latency import peak_memory_mb
from diminuendo.pruning.budget import check_budget, smallest_cost
from diminuendo.structure.cost import CostModel
from diminuendo.structure.shape import shape_of
from diminuendo.training.card import compression_card
from diminuendo.training.compress_config import CompressConfig
from diminuendo.training.config import LoopConfig
from diminuendo.training.device import make_accelerator
from diminuendo.training.loop import Loop, carry_out
from diminuendo.training.own_prediction import labels_of
from diminuendo.training.progress import duration_text
from diminuendo.training.removing import Source, free_axes, gateable
from diminuendo.training.run import Run, clips_of, fingerprint
from diminuendo.training.two_stages import TwoStages

log = logging.getLogger(__name__)

# Shorter runs are over before an estimate of them is.
WORTH_ESTIMATING = 100


@dataclass(frozen=True)
class _Job:
    """A compression whose input has been checked."""

    stages: TwoStages
    cost: CostModel
    total: float
    identity: Mapping[str, Any]
    recipe: str

    @property
    def config(self) -> CompressConfig:
        return self.stages.config


def compress(
    source: Source,
    cuts: CutSet,
    out: Path,
    config: CompressConfig,
    *,
    teacher: Model | None = None,
    loop: LoopConfig | None = None,
    recipe: str = "dphubert",
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Compresses a model and writes the smaller one to `out`; gives the run's result.

    teacher: whose hidden states are learned; the model itself, if not given. The result has `params` and
    `macs_per_second` (each `teacher`, the model before; `student`; `kept`), `expected_before_selection`,
    `removal_error`, the `shape`, and `out`; it is kept as result.json.

    Raises UserError for a wrong input (a budget below what cannot be removed, a teacher of another depth, a directory
    that holds something else), RuntimeError if the removed model were not the gated one.
    """
    given = {"MODEL": source.name, "--teacher": None if teacher is None else teacher.config.name_or_path}
    for what, name in given.items():
        if name and Path(name).resolve() == out.resolve():
            raise UserError(f"--out {out} is {what}'s own directory; give another")
    job = _checked(source, cuts, config, teacher, recipe)
    run = Run(out, job.identity)

    def train(trainer: Loop) -> tuple[dict[str, Any], Callable[[], None]]:
        accelerator = trainer.accelerator
        job.stages.teacher.to(accelerator.device)
        if trainer.resumed_stage is None and config.steps >= WORTH_ESTIMATING and accelerator.is_main_process:
            log.info("%s", _sentence(_measured(job, accelerator.device), config))
        removed = job.stages.first(trainer)
        job.stages.second(trainer, removed)
        result = _result(job, removed, trainer.carried, out)

        def write() -> None:
            architecture = job.stages.family.architecture_of(removed)
            assert architecture is not None
            card = compression_card(result, recipe, asdict(job.config), run.log, auto_class=architecture.auto_class)
            save(removed.cpu(), source.extractor, out, card=card, tokenizer_of=source.name)

        return result, write

    return carry_out(run, config, loop, train, resume=resume, overwrite=overwrite)


def dry_run(
    source: Source,
    cuts: CutSet,
    config: CompressConfig,
    *,
    teacher: Model | None = None,
    loop: LoopConfig | None = None,
    recipe: str = "dphubert",
) -> dict[str, Any]:
    """What the budget can reach, and from one measured step the time and memory that the run would take."""
    job = _checked(source, cuts, config, teacher, recipe)
    device = make_accelerator(config.precision, (loop or LoopConfig()).device).device
    job.stages.teacher.to(device)
    kind = config.budget.kind
    least = smallest_cost(job.cost, kind, config.round_to)
    measured = _measured(job, device)
    log.info("%s", _sentence(measured, config))
    return {
        "budget": config.keep,
        "total": job.total,
        "asked": config.budget.amount(job.total),
        "smallest_possible": least,
        "smallest_possible_kept": least / job.total,
        "clips": job.identity["clips"],
        "clip_seconds": job.identity["clip_seconds"],
        **measured,
    }


def _frames_in_10_s(model: Model) -> int:
    return int(family_of(model).frame_lengths(model, torch.tensor(10 * SAMPLING_RATE)))


def _checked(source: Source, cuts: CutSet, config: CompressConfig, teacher: Model | None, recipe: str) -> _Job:
    if config.objective == "masked_prediction":
        if teacher is not None:
            raise UserError("--teacher: the objective masked_prediction has no teacher; leave one of the two out")
        labels_of(source.name)
    teacher = source.model if teacher is None else teacher
    depth, teacher_depth = (encoder_config(model).num_hidden_layers for model in (source.model, teacher))
    if depth != teacher_depth:
        raise UserError(f"--teacher has {teacher_depth} layers, MODEL {depth}: a teacher needs MODEL's depth")
    frames, teacher_frames = (_frames_in_10_s(model) for model in (source.model, teacher))
    if frames != teacher_frames:
        raise UserError(
            f"--teacher gives {teacher_frames} frames for 10 s, MODEL {frames}: a teacher needs MODEL's frame rate"
        )
    config = config.resolved(default_layers(depth))
    layers = config.layers or ()
    if not layers or not all(0 <= layer <= depth for layer in layers):
        raise UserError(f"layers {layers}: expected numbers from 0 to {depth}, the model's depth")
    plain = gateable(source.model, factored=config.factored, meta=True)
    free = free_axes(plain, config.fixed_kinds)
    if config.width and not any(axis.kind == "width" for axis in free):
        raise UserError(
            "--width: MODEL's residual stream cannot become narrower, for its adapter stays as it is and reads it all; "
            "leave --width out"
        )
    cost = build_cost_model(plain, free)
    total = cost.total("macs") if config.budget.kind == "macs" else float(count_parameters(source.model))
    check_budget(cost, config.budget, total, config.round_to)
    stages = TwoStages(source, teacher, cuts, config, cost, total)
    _ = stages.check_batch  # audio that cannot be used is found here, before anything is written
    return _Job(stages, cost, total, _identity(source, teacher, cuts, config, recipe), recipe)


def _identity(source: Source, teacher: Model, cuts: CutSet, config: CompressConfig, recipe: str) -> dict[str, Any]:
    """What a checkpoint belongs to."""
    return {
        "command": "compress",
        "recipe": recipe,
        "source": source.name,
        "model_fingerprint": fingerprint(source.model),
        "teacher_fingerprint": fingerprint(teacher),
        **clips_of(cuts),
        "config": asdict(config),
    }


def _measured(job: _Job, device: torch.device) -> dict[str, Any]:
    """Times one joint step. Steps shrink with the model: while the target falls in the joint stage, not after it."""
    config = job.config
    step = job.stages.time_a_step(device) * config.accumulate
    kept = config.budget.amount(job.total) / job.total
    distil_step = step * (1 + 2 * kept) / 3  # the teacher's forward pass stays, the student's passes shrink
    joint = config.ramp * (step + distil_step) / 2 + (1 - config.ramp) * distil_step if config.learned else distil_step
    before, after = config.stage_steps
    memory = peak_memory_mb(device)
    memory += 2 * 4 * count_parameters(job.stages.source.model) / 1e6  # Adam's two moments, which one step does not see
    return {
        "seconds_per_step": round(step, 4),
        "estimated_seconds": round(joint * before + distil_step * after, 1),
        "estimated_memory_mb": round(memory),
    }


def _sentence(measured: Mapping[str, Any], config: CompressConfig) -> str:
    before, after = config.stage_steps
    joint = f"{before:,} joint and " if config.learned else ""
    after += 0 if config.learned else before
    return (
        f"about {duration_text(measured['estimated_seconds'])} for {joint}{after:,} distillation steps, "
        f"{measured['estimated_memory_mb']:,} MB (from one step)"
    )


def _result(job: _Job, removed: Model, facts: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Sizes before and after by counting, and what the first stage said."""
    sizes = {}
    for name, count in (("params", count_parameters), ("macs_per_second", count_macs_per_second)):
        before, after = count(job.stages.source.model), count(removed)
        sizes[name] = {"teacher": before, "student": after, "kept": after / before}
    return {
        **sizes,
        "expected_before_selection": facts["expected_before_selection"],
        "removal_error": facts["removal_error"],
        "sampling_at_start": facts.get("sampling_at_start"),
        "shape": facts["shape"],
        "full_shape": shape_of(job.stages.family.axes(job.stages.source.model)) | shape_of(job.cost.axes),
        "method": job.config.method,
        "steps": list(job.config.stage_steps),
        "skipped": facts["skipped"],
        "out": str(out),
    }
