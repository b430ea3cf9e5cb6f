"""Compression from a model and audio to a smaller model in a directory."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
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
from diminuendo.structure.latency import LatencyTable
from diminuendo.structure.shape import shape_of
from diminuendo.training.card import compression_card
from diminuendo.training.clusters import check_clusters, stand_in, teacher_clusters
from diminuendo.training.compress_config import CompressConfig
from diminuendo.training.config import LoopConfig
from diminuendo.training.device import make_accelerator
from diminuendo.training.front_end import hearing_filter_banks, learn_front_end
from diminuendo.training.hearing import lookaheads_of
from diminuendo.training.labelled import clips_to_learn
from diminuendo.training.latency import kept_promise, measure_table
from diminuendo.training.loop import Loop, carry_out
from diminuendo.training.own_prediction import labels_of
from diminuendo.training.progress import WORTH_ESTIMATING, duration_text
from diminuendo.training.recogniser import check_path, posterior_weight_of, pupil_of
from diminuendo.training.removing import Source, free_axes, gateable
from diminuendo.training.run import Run, clips_of, defaults_of, fingerprint
from diminuendo.training.student import check_student, made_by_hand, student_of
from diminuendo.training.two_stages import TwoStages
from diminuendo.training.unlearned import remove_in_rounds

log = logging.getLogger(__name__)


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
    teacher: Source | None = None,
    loop: LoopConfig | None = None,
    recipe: str = "dphubert",
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Compresses a model and writes the smaller one to `out`; gives the run's result.

    teacher: whose hidden states are learned; the model itself, if not given. With a task in the configuration the model
    is a recogniser, or becomes one, and texts of the clips are learned too. The result has `params` and
    `macs_per_second` (each `teacher`, the model before; `student`; `kept`), `expected_before_selection`,
    `removal_error`, the `shape`, and `out`; with a budget in latency `latency_ms`. It is kept as result.json.

    Raises UserError for a wrong input (a budget below what cannot be removed, a teacher of another depth, a directory
    that holds something else), RuntimeError if the removed model were not the gated one.
    """
    given = {"MODEL": source.name, "--teacher": None if teacher is None else teacher.name}
    for what, name in given.items():
        if name and Path(name).resolve() == out.resolve():
            raise UserError(f"--out {out} is {what}'s own directory; give another")
    if config.cluster_file is not None and Path(config.cluster_file).resolve().parent == out.resolve():
        raise UserError(f"cluster_file {config.cluster_file} lies in --out, which is written anew; copy it elsewhere")
    job = _checked(source, cuts, config, teacher, recipe)
    run = Run(out, job.identity, defaults_of(config))

    def kept_table() -> LatencyTable | None:
        run.check(resume=resume, overwrite=overwrite)  # before a minute goes by
        return run.kept_table() if resume else None

    job = _timed(job, loop or LoopConfig(), kept_table)
    run.table = job.cost.table

    def train(trainer: Loop) -> tuple[dict[str, Any], Callable[[], None]]:
        accelerator = trainer.accelerator
        terms = " + ".join(f"{weight:g} x {name}" for name, weight in job.config.term_weights.items())
        log.info("the loss is %s", terms or job.config.objective)
        job.stages.teacher.model.to(accelerator.device)
        if config.discriminative is not None:
            job.stages.clusters = teacher_clusters(trainer, job.stages.teacher, job.stages.cuts, job.config)
        if config.hears_filter_banks:
            before = job.stages.before
            learn_front_end(trainer, job.stages.source, before, job.stages.cuts, job.config)
        if trainer.resumed_stage is None and config.steps >= WORTH_ESTIMATING and accelerator.is_main_process:
            log.info("%s", _sentence(_measured(job, accelerator.device), config))
        removed = _smaller(job.stages, trainer)
        job.stages.second(trainer, removed)
        latency = {}
        if job.cost.table is not None and accelerator.is_main_process:
            model, came_as, shape = job.stages.source.model, job.stages.before.model, trainer.carried["shape"]
            latency = {"latency_ms": kept_promise(model, removed, shape, job.cost, config.budget, came_as)}
        result = _result(job, removed, trainer.carried, out) | latency

        def write() -> None:
            architecture = job.stages.family.architecture_of(removed)
            assert architecture is not None
            card = compression_card(result, recipe, asdict(job.config), run.log, auto_class=architecture.auto_class)
            tokens = None if job.stages.clips is None else job.stages.clips.pupil.tokens.tokenizer
            save(removed.cpu(), job.stages.source.extractor, out, card=card, tokenizer=tokens, tokenizer_of=source.name)

        return result, write

    return carry_out(run, config, loop, train, resume=resume, overwrite=overwrite)


def _smaller(stages: TwoStages, trainer: Loop) -> Model:
    """What the first stage leaves."""
    if stages.config.learned:
        return stages.first(trainer)
    return (student_of if stages.config.method == "student" else remove_in_rounds)(stages, trainer)


def dry_run(
    source: Source,
    cuts: CutSet,
    config: CompressConfig,
    *,
    teacher: Source | None = None,
    loop: LoopConfig | None = None,
    recipe: str = "dphubert",
) -> dict[str, Any]:
    """What the budget can reach, or the student made for it, and from one measured step the run's time and memory."""
    job = _timed(_checked(source, cuts, config, teacher, recipe), loop or LoopConfig(), lambda: None)
    device = make_accelerator(config.precision, (loop or LoopConfig()).device).device
    job.stages.teacher.model.to(device)
    job.stages.clusters = stand_in(job.stages.teacher, config)
    reached: dict[str, Any]
    if config.method == "student":
        reached = {"student": check_student(job.stages.before.model, job.stages.source.model, config, job.total)}
    else:
        least = smallest_cost(job.cost, config.budget.kind, config.round_to)
        reached = {"smallest_possible": least, "smallest_possible_kept": least / job.total}
    measured = _measured(job, device)
    # Of both front ends alone: 0.23 of a step of the whole model, as a small one had it.
    kept = config.budget.amount(job.total) / job.total if config.method == "student" else 1.0
    front_end = config.front_end_steps * measured["seconds_per_step"] * 3 / (1 + 2 * kept) / 4
    measured["estimated_seconds"] = round(measured["estimated_seconds"] + front_end, 1)
    log.info("%s", _sentence(measured, config, config.front_end_steps))
    return {
        "budget": config.keep,
        "total": job.total,
        "asked": config.budget.amount(job.total),
        **reached,
        "clips": job.identity["clips"],
        "clip_seconds": job.identity["clip_seconds"],
        **measured,
    }


def _frames_in_10_s(model: Model) -> int:
    return int(family_of(model).frame_lengths(model, torch.tensor(10 * SAMPLING_RATE)))


def _checked(given: Source, cuts: CutSet, config: CompressConfig, teacher: Source | None, recipe: str) -> _Job:
    if config.objective == "masked_prediction":
        if teacher is not None:
            raise UserError("--teacher: the objective masked_prediction has no teacher; leave one of the two out")
        labels_of(given.name)
    source, clips = given, None
    if config.task is not None:
        pupil = pupil_of(given, cuts, config)
        weight = posterior_weight_of(config, pupil, teacher)
        config = replace(config, posterior_weight=weight, predictor_width=pupil.predictor_width)
        check_path(config, pupil)
        source = replace(given, model=pupil.model)
        clips = clips_to_learn(cuts, pupil, config, source, teacher)
        cuts = clips.cuts
    elif family_of(given.model).is_recogniser(given.model):
        for means, why in (
            (config.method == "student", "--method student: MODEL is a recogniser, whose head would be new too"),
            (not config.regression_weight, "regression_weight 0: MODEL's head would read states that nothing holds"),
        ):
            if means:
                raise UserError(f"{why}; give --task own to train it")
    teacher = source if teacher is None else teacher
    before = source
    if config.hears_filter_banks:
        source = hearing_filter_banks(source, config.seed, plain=config.input == "fbank-plain")
    depth, teacher_depth = (encoder_config(one.model).num_hidden_layers for one in (source, teacher))
    if depth != teacher_depth:
        raise UserError(f"--teacher has {teacher_depth} layers, MODEL {depth}: a teacher needs MODEL's depth")
    frames, teacher_frames = (_frames_in_10_s(one.model) for one in (source, teacher))
    if abs(frames - teacher_frames) > 1:  # convolutions that look back give one more
        raise UserError(
            f"--teacher gives {teacher_frames} frames for 10 s, MODEL {frames}: a teacher needs MODEL's frame rate"
        )
    lookaheads_of(encoder_config(source.model), config.lookaheads or ())
    student_layers = config.shape.layers if config.method == "student" else None
    config = config.resolved(default_layers(depth, config.maps, student_layers))
    check_clusters(teacher, cuts, config)
    layers = config.layers or ()
    if not layers or not all(0 <= layer <= depth for layer in layers):
        raise UserError(f"layers {layers}: expected numbers from 0 to {depth}, the model's depth")
    plain = gateable(source.model, factored=config.factored, meta=True)
    free = free_axes(plain, config.fixed_kinds, head=config.head_free)
    if config.width and not any(axis.kind == "width" for axis in free):
        raise UserError(
            "--width: MODEL's residual stream cannot become narrower, for its adapter stays as it is and reads it all; "
            "leave --width out"
        )
    cost = build_cost_model(plain, free)
    total = math.nan  # of latency, which is measured last
    if config.budget.kind != "latency":
        count = count_macs_per_second if config.budget.kind == "macs" else count_parameters
        total = float(count(before.model))
        if config.method == "student":
            check_student(before.model, source.model, config, total)
        else:
            check_budget(cost, config.budget, total, config.round_to)
    stages = TwoStages(source, teacher, cuts, config, cost, total, clips, before)
    _ = stages.check_batch  # audio that cannot be used is found here, before anything is written
    return _Job(stages, cost, total, _identity(given, source, teacher, cuts, config, recipe), recipe)


def _timed(job: _Job, loop: LoopConfig, kept_table: Callable[[], LatencyTable | None]) -> _Job:
    """The job with the latencies that its budget is in; as it is, if its budget is in something else.

    kept_table: of the run that goes on, if it has one. Several processes go by the table of the first.
    """
    config, model = job.config, job.stages.source.model
    if config.budget.kind != "latency":
        return job
    if config.latency_device == "cuda" and not torch.cuda.is_available():
        raise UserError("latency_device cuda: this machine has no CUDA device that torch can use; give cpu")
    table = None
    if make_accelerator(config.precision, loop.device).is_main_process:
        table = kept_table() or measure_table(
            model,
            job.cost,
            factored=config.factored,
            round_to=config.round_to,
            threads=config.latency_threads or torch.get_num_threads(),
            device=config.latency_device,
            quiet=loop.quiet,
        )
    (table,) = broadcast_object_list([table])
    assert table is not None
    cost, total, old = replace(job.cost, table=table), table.total_ms, job.stages
    check_budget(cost, config.budget, total, config.round_to)
    stages = TwoStages(old.source, old.teacher, old.cuts, config, cost, total, old.clips, old.before)
    return replace(job, stages=stages, cost=cost, total=total)


def _identity(
    given: Source, source: Source, teacher: Source, cuts: CutSet, config: CompressConfig, recipe: str
) -> dict[str, Any]:
    """What a checkpoint belongs to: given as it came, source with the front end of filter banks, if it gets one."""
    front_end = {}
    if config.hears_filter_banks:
        front_end = {"front_end": fingerprint(family_of(source.model).encoder(source.model).feature_extractor)}
    return {
        "command": "compress",
        "recipe": recipe,
        "source": given.name,
        "model_fingerprint": fingerprint(given.model),
        **front_end,
        "teacher_fingerprint": fingerprint(teacher.model),
        **clips_of(cuts),
        "config": asdict(config),
    }


def _measured(job: _Job, device: torch.device) -> dict[str, Any]:
    """Times one joint step, or of a student made by hand its own.

    Steps shrink with the model: while the target falls in the joint stage, not after it.
    """
    config = job.config
    student = made_by_hand(job.stages)[0] if config.method == "student" else None
    step = job.stages.time_a_step(device, student) * config.accumulate
    kept = config.budget.amount(job.total) / job.total if student is None else 1.0
    distil_step = step * (1 + 2 * kept) / 3  # the teacher's forward pass stays, the student's passes shrink
    joint = config.ramp * (step + distil_step) / 2 + (1 - config.ramp) * distil_step if config.learned else distil_step
    before, after = config.stage_steps
    memory = peak_memory_mb(device)
    memory += 2 * 4 * count_parameters(student or job.stages.source.model) / 1e6  # Adam's two moments, not yet there
    return {
        "seconds_per_step": round(step, 4),
        "estimated_seconds": round(joint * before + distil_step * after, 1),
        "estimated_memory_mb": round(memory),
    }


def _sentence(measured: Mapping[str, Any], config: CompressConfig, front_end: int = 0) -> str:
    """front_end: the steps of a front end that are still to come."""
    before, after = config.stage_steps
    first = f"{front_end:,} front end and " if front_end else ""
    first += f"{before:,} joint and " if config.learned else ""
    after += 0 if config.learned else before
    return (
        f"about {duration_text(measured['estimated_seconds'])} for {first}{after:,} distillation steps, "
        f"{measured['estimated_memory_mb']:,} MB (from one step)"
    )


def _result(job: _Job, removed: Model, facts: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Sizes before and after by counting, and what the first stage said."""
    sizes = {}
    for name, count in (("params", count_parameters), ("macs_per_second", count_macs_per_second)):
        before, after = count(job.stages.before.model), count(removed)
        sizes[name] = {"teacher": before, "student": after, "kept": after / before}
    return {
        **sizes,
        "expected_before_selection": facts["expected_before_selection"],
        "removal_error": facts["removal_error"],
        "sampling_at_start": facts.get("sampling_at_start"),
        "shape": facts["shape"],
        "full_shape": facts["shape"]
        and (shape_of(job.stages.family.axes(job.stages.source.model)) | shape_of(job.cost.axes)),
        "method": job.config.method,
        **({"student": facts["student"]} if "student" in facts else {}),
        "left_out": job.stages.clips.left_out if job.stages.clips else "",
        "steps": list(job.config.stage_steps),
        "skipped": facts["skipped"],
        "out": str(out),
    }
