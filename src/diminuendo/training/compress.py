"""Compression in two stages (DPHuBERT): learn what can go while distilling, remove it, distil what is left."""

import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet

from diminuendo.data.batching import Batch, BatchSettings, TrainingBatches
from diminuendo.data.manifest import total_seconds
from diminuendo.distillation.hidden import CosineForm, HiddenDistillation, default_layers, valid_frames
from diminuendo.errors import UserError
from diminuendo.export.huggingface import save
from diminuendo.families import Model, build, build_cost_model, family_of, model_inputs
from diminuendo.profiling.count import count_macs_per_second, count_parameters
from diminuendo.pruning.budget import Budget, check_budget, parse_budget, select, selected_cost
from diminuendo.pruning.gating import Gates, attach, plain_state
from diminuendo.pruning.removal import remove
from diminuendo.structure.cost import CostModel
from diminuendo.structure.shape import Shape, shape_of
from diminuendo.training.card import compression_card
from diminuendo.training.loop import Group, Loop, LoopConfig, Stage, constant, make_accelerator, warm_up_then_decay
from diminuendo.training.objective import DistillationObjective, JointObjective
from diminuendo.training.run import Run

log = logging.getLogger(__name__)

REMOVAL_TOLERANCE = 1e-4
WARN_OFF_BUDGET = 0.02


@dataclass(frozen=True)
class CompressConfig:
    """A complete configuration of a compression.

    keep: the budget, like params=0.25. steps: of the joint stage; distil_steps: of the second, None for half of them.
    seconds_per_batch: of audio, for every process and accumulated batch. crop_to_shortest: crop a batch's clips to
    its shortest instead of padding them. layers: the distilled ones, None for 0, 1/3, 2/3 and all of the depth.
    gate_learning_rate: also the multipliers'; None for 0.02, more in runs so short that gates could not close.
    warm_up, distil_warm_up, ramp: fractions of the stage's steps. drop_rate: of the gates at the start.
    """

    keep: str = "params=0.25"
    steps: int = 5000
    distil_steps: int | None = None
    seconds_per_batch: float = 60.0
    max_seconds: float = 15.0
    crop_to_shortest: bool = True
    accumulate: int = 1
    precision: str = "fp32"
    seed: int = 0
    round_to: int = 8
    layers: tuple[int, ...] | None = None
    cosine: CosineForm = "one_minus"
    cosine_weight: float = 1.0
    learning_rate: float = 2e-4
    distil_learning_rate: float = 1e-4
    gate_learning_rate: float | None = None
    weight_decay: float = 0.01
    warm_up: float = 0.3
    distil_warm_up: float = 0.2
    ramp: float = 0.1
    clip: float = 10.0
    drop_rate: float = 0.01

    def __post_init__(self) -> None:
        parse_budget(self.keep)
        for name, least in (("steps", 1), ("round_to", 1), ("accumulate", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.distil_steps is not None and self.distil_steps < 0:
            raise UserError(f"distil_steps must not be negative, got {self.distil_steps}")

    @property
    def budget(self) -> Budget:
        return parse_budget(self.keep)

    @property
    def second_stage_steps(self) -> int:
        return self.steps // 2 if self.distil_steps is None else self.distil_steps

    @property
    def gate_rate(self) -> float:
        # From the start to a shut gate log_alpha has some 6 to go, the multipliers have to grow first, and Adam moves
        # by at most the learning rate a step: at 40 / steps the way takes about a quarter of the run.
        return max(0.02, 40.0 / self.steps) if self.gate_learning_rate is None else self.gate_learning_rate

    def batch_settings(self, rank: int = 0, world_size: int = 1, offset: int = 0) -> BatchSettings:
        return BatchSettings(
            seconds_per_batch=self.seconds_per_batch,
            max_seconds=self.max_seconds,
            crop_to_shortest=self.crop_to_shortest,
            seed=self.seed + offset,
            rank=rank,
            world_size=world_size,
        )


@dataclass(frozen=True)
class Source:
    """A model with its feature extractor. name: the directory or hub id it came from, if any: a recogniser's tokenizer
    is taken from there.
    """

    model: Model
    extractor: Any
    name: str | None = None


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
    """Compresses a model and writes the smaller one to `out`; gives the run's result (see `_result`).

    teacher: whose hidden states are learned; the model itself, if not given. Raises UserError for a wrong input (a
    budget below what cannot be removed, a teacher of another depth), RuntimeError if the removed model were not the
    gated one.
    """
    teacher = source.model if teacher is None else teacher
    layers = _layers(source.model, teacher, config)
    run = Run(out, _identity(source, teacher, cuts, config, recipe))
    cost = build_cost_model(family_of(source.model).plain(source.model))
    total = cost.total("macs") if config.budget.kind == "macs" else float(count_parameters(source.model))
    check_budget(cost, config.budget, total, config.round_to)
    accelerator = make_accelerator(replace(loop or LoopConfig(), precision=config.precision))
    if accelerator.is_main_process:
        run.open(resume=resume, overwrite=overwrite)
    accelerator.wait_for_everyone()
    if run.result is not None:
        return run.result
    loop_config = replace(
        loop or LoopConfig(), precision=config.precision, accumulate=config.accumulate, clip=config.clip
    )
    started = time.time()
    trainer = Loop(run, loop_config, accelerator)
    compressor = _Compressor(source, teacher.to(accelerator.device), cuts, config, layers, cost, total)
    removed, facts = compressor.first_stage(trainer)
    trainer.carried = facts
    compressor.second_stage(trainer, removed)
    result = compressor.result(removed, facts, out)
    if accelerator.is_main_process:
        card = compression_card(result, recipe, config, run.log)
        save(removed.cpu(), source.extractor, out, card=card, tokenizer_of=source.name)
        run.finish(result | {"seconds": round(time.time() - started, 1)})
    accelerator.wait_for_everyone()
    return run.result or result


def _layers(student: Model, teacher: Model, config: CompressConfig) -> tuple[int, ...]:
    depth, teacher_depth = student.config.num_hidden_layers, teacher.config.num_hidden_layers
    if depth != teacher_depth:
        raise UserError(f"--teacher has {teacher_depth} layers, MODEL {depth}: a teacher needs MODEL's depth")
    layers = default_layers(depth) if config.layers is None else config.layers
    if not layers or not all(0 <= layer <= depth for layer in layers):
        raise UserError(f"layers {layers}: expected numbers from 0 to {depth}, the model's depth")
    return layers


def _identity(source: Source, teacher: Model, cuts: CutSet, config: CompressConfig, recipe: str) -> dict[str, Any]:
    """What a checkpoint belongs to."""
    seconds = total_seconds(cuts)
    return {
        "command": "compress",
        "recipe": recipe,
        "model": source.name,
        "model_fingerprint": fingerprint(source.model),
        "teacher_fingerprint": fingerprint(teacher),
        "clips": None if cuts.is_lazy else len(cuts),
        "clip_seconds": None if seconds is None else round(seconds, 3),
        "config": asdict(config),
    }


def fingerprint(model: Model) -> str:
    """A checksum of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class _Compressor:
    """The two stages of one compression."""

    def __init__(
        self,
        source: Source,
        teacher: Model,
        cuts: CutSet,
        config: CompressConfig,
        layers: tuple[int, ...],
        cost: CostModel,
        total: float,
    ) -> None:
        self.source, self.teacher, self.cuts, self.config = source, teacher, cuts, config
        self.layers, self.cost, self.total = layers, cost, total
        self.family = family_of(source.model)

    def batches(self, trainer: Loop, offset: int = 0) -> TrainingBatches:
        accelerator = trainer.accelerator
        settings = self.config.batch_settings(accelerator.process_index, accelerator.num_processes, offset)
        return TrainingBatches(self.cuts, settings)

    def distillation(self) -> HiddenDistillation:
        student_dim, teacher_dim = self.source.model.config.hidden_size, self.teacher.config.hidden_size
        config = self.config
        torch.manual_seed(config.seed)
        return HiddenDistillation(
            self.layers, student_dim, teacher_dim, cosine=config.cosine, cosine_weight=config.cosine_weight
        )

    def joint_objective(self) -> JointObjective:
        student = self.family.plain(self.source.model)
        gates = Gates(self.family.axes(student), drop_rate=self.config.drop_rate, seed=self.config.seed)
        attach(student, gates)
        return JointObjective(
            student,
            self.teacher,
            self.source.extractor,
            self.distillation(),
            gates=gates,
            cost=self.cost,
            kind=self.config.budget.kind,
            total=self.total,
            removed=1.0 - self.config.budget.amount(self.total) / self.total,
            ramp_steps=round(self.config.steps * self.config.ramp),
        )

    def first_stage(self, trainer: Loop) -> tuple[Model, dict[str, Any]]:
        """The removed model, and what the second stage and the result have to know of the first."""
        if trainer.resumed_stage == "distil":
            return self._removed_again(trainer.carried), trainer.carried
        objective, config = self.joint_objective(), self.config
        weights = [
            p for part in (objective.student, objective.distillation) for p in part.parameters() if p.requires_grad
        ]
        gate_rate = config.gate_rate
        groups = [
            Group(
                weights,
                config.learning_rate,
                warm_up_then_decay(config.steps, config.warm_up),
                weight_decay=config.weight_decay,
            ),
            Group([objective.gates.log_alpha], gate_rate, constant, clipped=False),
            Group(list(objective.multipliers.parameters()), gate_rate, constant, maximize=True, clipped=False),
        ]
        stage = Stage("joint", config.steps, objective, groups, after_step=objective.gates.clamp)
        batches = self.batches(trainer)
        try:
            trainer.run_stage(stage, batches)
        finally:
            batches.close()
        return self._remove(objective, skipped=batches.skipped.summary())

    def _remove(self, objective: JointObjective, skipped: str) -> tuple[Model, dict[str, Any]]:
        config, gates = self.config, objective.gates
        with torch.no_grad():
            expected = float(objective.expected_kept())
        scores = {axis.name: gates.log_alpha.detach()[gates.of(axis.name)].cpu() for axis in gates.axes}
        selection = select(self.cost, config.budget, self.total, scores, config.round_to)
        gates.evaluate(selection)
        state = remove(gates.axes, plain_state(objective.student), selection)
        shape: Shape = {**shape_before(self.source.model), **shape_of(gates.axes, selection)}
        removed = build(
            self.family, self.source.model.config, shape, state, recogniser=is_recogniser(self.source.model)
        )
        error = removal_error(removed, objective.student, self.source.extractor, self._check_batch())
        if not error < REMOVAL_TOLERANCE:
            raise RuntimeError(
                f"the removed model is not the gated one: relative error {error:.2e}, allowed {REMOVAL_TOLERANCE:g}; "
                "nothing was written, please report this"
            )
        kept = selected_cost(self.cost, config.budget.kind, selection) / self.total
        if abs(expected - kept) > WARN_OFF_BUDGET:
            log.warning(
                "the gates' expected kept fraction was %.3f, the selection keeps %.3f: more steps, or a higher gate "
                "learning rate, would let the multipliers finish",
                expected,
                kept,
            )
        facts = {
            "shape": shape,
            "expected_before_selection": expected,
            "removal_error": error,
            "skipped": skipped,
            "maps": {name: value.detach().cpu() for name, value in objective.distillation.state_dict().items()},
        }
        return removed, facts

    def _removed_again(self, facts: Mapping[str, Any]) -> Model:
        """A model of the removed shape, whose weights the second stage's checkpoint brings."""
        plain = self.family.plain(self.source.model)
        axes = self.family.axes(plain)
        shape = facts["shape"]
        # Which members stay matters for sizes only: the checkpoint holds their weights.
        selection = {axis.name: _any_members(axis.size, shape[axis.name]) for axis in axes}
        state = remove(axes, dict(plain.state_dict()), selection)
        state = {name: value.clone() for name, value in state.items()}
        return build(self.family, self.source.model.config, shape, state, recogniser=is_recogniser(self.source.model))

    def _check_batch(self) -> Batch:
        settings = replace(self.config.batch_settings(), crop_to_shortest=False)
        settings = replace(settings, seconds_per_batch=min(30.0, max(settings.seconds_per_batch, settings.max_seconds)))
        batches = TrainingBatches(self.cuts, settings)
        try:
            return next(batches)
        finally:
            batches.close()

    def second_stage(self, trainer: Loop, removed: Model) -> None:
        """Distils the removed model, in place."""
        config, steps = self.config, self.config.second_stage_steps
        if not steps:
            return
        distillation = self.distillation()
        distillation.load_state_dict(trainer.carried["maps"])
        objective = DistillationObjective(removed, self.teacher, self.source.extractor, distillation)
        weights = [p for p in objective.parameters() if p.requires_grad]
        schedule = warm_up_then_decay(steps, config.distil_warm_up)
        group = Group(weights, config.distil_learning_rate, schedule, weight_decay=config.weight_decay)
        stage = Stage("distil", steps, objective, [group], offset=config.steps)
        batches = self.batches(trainer, offset=1)
        try:
            trainer.run_stage(stage, batches)
        finally:
            batches.close()

    def result(self, removed: Model, facts: Mapping[str, Any], out: Path) -> dict[str, Any]:
        """Sizes of teacher and student by counting, and what the first stage said."""
        sizes = {}
        for name, count in (("params", count_parameters), ("macs_per_second", count_macs_per_second)):
            before, after = count(self.source.model), count(removed)
            sizes[name] = {"teacher": before, "student": after, "kept": after / before}
        return {
            **sizes,
            "expected_before_selection": facts["expected_before_selection"],
            "removal_error": facts["removal_error"],
            "shape": facts["shape"],
            "full_shape": {**shape_of(self.cost.axes)},
            "steps": [self.config.steps, self.config.second_stage_steps],
            "skipped": facts["skipped"],
            "out": str(out),
        }


def shape_before(model: Model) -> Shape:
    """The shape of a model that was compressed before; nothing for any other."""
    shape: Shape = dict(getattr(model.config, "diminuendo", {}).get("shape", {}))
    return shape


def is_recogniser(model: Model) -> bool:
    family = family_of(model)
    return isinstance(model, family.ctc_class | family.ragged_ctc_class)


def _any_members(size: int, kept: int | list[int]) -> torch.Tensor:
    count = kept if isinstance(kept, int) else len(kept)
    return torch.arange(size) < count


@torch.inference_mode()
def removal_error(removed: Model, gated: Model, extractor: Any, batch: Batch) -> float:
    """The largest ||a - b|| / ||b|| over hidden states, valid frames only, in fp32."""
    family, device = family_of(gated), gated.device
    lengths = batch.lengths.to(device)
    inputs = model_inputs(extractor, batch.waveforms.to(device), lengths)
    valid = None
    errors = []
    for a, b in zip(family.hidden_states(removed.to(device), inputs), family.hidden_states(gated, inputs), strict=True):
        valid = valid_frames(family.frame_lengths(gated, lengths), b.shape[1]) if valid is None else valid
        errors.append(float((a - b)[valid].norm() / b[valid].norm()))
    return max(errors)
