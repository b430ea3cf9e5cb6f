"""The two stages of a compression (DPHuBERT): learn what can go while distilling, remove it, distil what is left."""

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from lhotse import CutSet
from torch import nn

from diminuendo.data.batching import Batch, look_at_one
from diminuendo.distillation.hidden import HiddenDistillation, valid_frames
from diminuendo.families import Model, build, family_of, model_inputs
from diminuendo.pruning.budget import select, selected_cost
from diminuendo.pruning.gating import KEPT_GATE_FLOOR, Gates, attach, plain_state
from diminuendo.pruning.removal import remove
from diminuendo.structure.axis import Axis
from diminuendo.structure.cost import CostModel
from diminuendo.structure.shape import Shape, shape_of
from diminuendo.tasks.selfsupervised import MaskedPrediction
from diminuendo.training.compress_config import CompressConfig
from diminuendo.training.kernels import choose_attention, convolution_chosen
from diminuendo.training.loop import Group, Loop, Stage
from diminuendo.training.objective import DistillationObjective, JointObjective
from diminuendo.training.own_prediction import own_prediction
from diminuendo.training.schedules import constant, warm_up_then_decay

log = logging.getLogger(__name__)

REMOVAL_TOLERANCE = 1e-4
OFF_BUDGET = 0.02


@dataclass(frozen=True)
class Source:
    """A model with its feature extractor, and the directory or hub id they came from, if any."""

    model: Model
    extractor: Any
    name: str | None = None


class TwoStages:
    """The two stages of one compression. `config` is a resolved one."""

    def __init__(
        self,
        source: Source,
        teacher: Model,
        cuts: CutSet,
        config: CompressConfig,
        cost: CostModel,
        total: float,
    ) -> None:
        self.source, self.teacher, self.cuts, self.config = source, teacher, cuts, config
        self.layers, self.cost, self.total = config.layers or (), cost, total
        self.family = family_of(source.model)

    def _distillation(self) -> HiddenDistillation:
        student_dim, teacher_dim = self.source.model.config.hidden_size, self.teacher.config.hidden_size
        config = self.config
        torch.manual_seed(config.seed)
        return HiddenDistillation(
            self.layers, student_dim, teacher_dim, cosine=config.cosine, cosine_weight=config.cosine_weight
        )

    def _objective(self, student: Model, device: torch.device) -> DistillationObjective | MaskedPrediction:
        """What both stages minimise, with a fresh state; the student is ours, its attention the fastest to train."""
        choose_attention(student, self.config, device)
        if self.config.objective == "masked_prediction":
            return own_prediction(self.source.name, student, self.source.extractor, self.config.seed)
        return DistillationObjective(student, self.teacher, self.source.extractor, self._distillation())

    def _joint_objective(self, device: torch.device) -> JointObjective:
        # Gates are attached on the CPU: there they have their first values.
        config, student = self.config, self.family.plain(self.source.model).cpu()
        rates = {"neurons": config.neuron_drop_rate or config.drop_rate}
        gates = Gates(free_axes(student, config.fixed), drop_rate=config.drop_rate, drop_rates=rates, seed=config.seed)
        objective = self._objective(student, device)
        attach(student, gates)
        return JointObjective(
            objective,
            name=config.objective,
            gates=gates,
            cost=self.cost,
            kind=config.budget.kind,
            total=self.total,
            removed=1.0 - config.budget.amount(self.total) / self.total,
            ramp_steps=round(config.steps * config.ramp),
            two_sided=config.two_sided,
        ).to(device)

    def first(self, trainer: Loop) -> Model:
        """The removed model; `carried` has what the second stage and the result have to know of the first."""
        if trainer.resumed_stage == "distil":
            return self._removed_again(trainer.carried)
        objective, config = self._joint_objective(trainer.accelerator.device), self.config
        at_start = self._sampling_at_start(objective)
        weights = _trained(objective.objective)
        multipliers = list(objective.multipliers.parameters())
        schedule = warm_up_then_decay(config.steps, config.warm_up)
        groups = [
            Group(weights, config.learning_rate, schedule, weight_decay=config.weight_decay),
            Group([objective.gates.log_alpha], config.gate_rate, constant, clipped=False),
            Group(multipliers, config.multiplier_rate, constant, maximize=True, clipped=False),
        ]
        stage = Stage("joint", config.steps, objective, groups, after_step=objective.clamp)
        skipped = trainer.run_stage(stage, self.cuts, crop_to_shortest=config.crop_to_shortest)
        removed, facts = self._remove(objective)
        trainer.carried = {**facts, "sampling_at_start": at_start, "skipped": skipped}
        return removed

    @torch.no_grad()
    def _sampling_at_start(self, objective: JointObjective) -> float:
        """The distillation loss that sampled gates cause before anything is learned."""
        batch = self.check_batch
        device = objective.gates.log_alpha.device
        scalars = objective(batch.waveforms.to(device), batch.lengths.to(device), 0, 0)
        loss = float(scalars[objective.name])
        log.info("with gates sampled at the start the %s loss is %.4f", objective.name.replace("_", " "), loss)
        return loss

    def time_a_step(self, device: torch.device) -> float:
        """Seconds of one joint step on a real batch, the second of two; nothing is kept of them."""
        objective = self._joint_objective(device)
        objective.train()
        settings = self.config.batch_settings(crop_to_shortest=self.config.crop_to_shortest)
        batch, seconds = look_at_one(self.cuts, settings), 0.0
        for _ in range(2):
            started = time.perf_counter()
            autocast = torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bf16")
            with autocast, convolution_chosen(objective):  # as in the loop
                scalars = objective(batch.waveforms.to(device), batch.lengths.to(device), 0, 0)
            scalars["loss"].backward()
            float(scalars["loss"].detach())  # waits for the device
            seconds = time.perf_counter() - started
        return seconds

    def _remove(self, objective: JointObjective) -> tuple[Model, dict[str, Any]]:
        config, gates, student = self.config, objective.gates, objective.student
        with torch.no_grad():
            expected = float(objective.expected_kept())
        scores = {axis.name: gates.log_alpha.detach()[gates.of(axis.name)].cpu() for axis in gates.axes}
        selection = select(self.cost, config.budget, self.total, scores, config.round_to)
        whole = shape_of(self.family.axes(student))
        shape: Shape = {**whole, **shape_before(self.source.model), **shape_of(gates.axes, selection)}
        error = 0.0
        # First with gates of 1: of a member that was kept though shut, a wrong weight would hardly be seen.
        for floor in (1.0, KEPT_GATE_FLOOR):
            gates.evaluate(selection, floor)
            state = remove(gates.axes, plain_state(student), selection)
            removed = build(self.source.model, shape, state)
            error = max(error, removal_error(removed, student, self.source.extractor, self.check_batch))
            if not error < REMOVAL_TOLERANCE:
                raise RuntimeError(
                    f"the removed model is not the gated one: relative error {error:.2e}, allowed "
                    f"{REMOVAL_TOLERANCE:g}; no model was written, please report this"
                )
        kept = selected_cost(self.cost, config.budget.kind, selection) / self.total
        if expected - kept > OFF_BUDGET:
            log.warning(
                "the gates would keep %.3f, the selection keeps %.3f, so it removes what is open: more steps, or a "
                "higher gate_learning_rate, would let them close",
                expected,
                kept,
            )
        elif kept - expected > OFF_BUDGET:
            log.info(
                "the gates would keep %.3f; the selection opens the best of what is shut, up to %.3f", expected, kept
            )
        facts = {
            "shape": shape,
            "expected_before_selection": expected,
            "removal_error": error,
            "heads": {name: value.detach().cpu() for name, value in _heads(objective.objective).items()},
        }
        return removed, facts

    def _removed_again(self, facts: Mapping[str, Any]) -> Model:
        """A model of the removed shape, whose weights the second stage's checkpoint brings."""
        plain = self.family.plain(self.source.model)
        axes = free_axes(plain, self.config.fixed)
        shape = facts["shape"]
        # Which members stay matters for sizes only: the checkpoint holds their weights.
        selection = {axis.name: _any_members(axis.size, shape[axis.name]) for axis in axes}
        state = remove(axes, dict(plain.state_dict()), selection)
        state = {name: value.clone() for name, value in state.items()}
        return build(self.source.model, shape, state)

    @cached_property
    def check_batch(self) -> Batch:
        """Some real audio, padded, to check the removal on. UserError if no clip can be used."""
        settings = self.config.batch_settings(crop_to_shortest=False)
        settings = replace(settings, seconds_per_batch=min(30.0, max(settings.seconds_per_batch, settings.max_seconds)))
        return look_at_one(self.cuts, settings)

    def second(self, trainer: Loop, removed: Model) -> None:
        """Goes on with the removed model, in place, and says in `carried` what was skipped so far."""
        objective = self._objective(removed, trainer.accelerator.device)
        objective.load_state_dict({**objective.state_dict(), **trainer.carried["heads"]})
        if self.config.second_stage_steps:
            self._distil(trainer, objective)
        if isinstance(objective, DistillationObjective):
            self._fold_map(removed, objective.distillation)

    def _distil(self, trainer: Loop, objective: nn.Module) -> None:
        config, steps = self.config, self.config.second_stage_steps
        schedule = warm_up_then_decay(steps, config.distil_warm_up)
        group = Group(_trained(objective), config.distil_learning_rate, schedule, weight_decay=config.weight_decay)
        stage = Stage("distil", steps, objective, [group], offset=config.steps)
        skipped = trainer.run_stage(stage, self.cuts, crop_to_shortest=config.crop_to_shortest, order=1)
        trainer.carried["skipped"] = skipped

    @torch.no_grad()
    def _fold_map(self, removed: Model, distillation: HiddenDistillation) -> None:
        """Lets a recogniser's head read what was distilled: not the last states but what the map makes of them.

        Where the teacher is another model than MODEL the head is of neither's states, and stays as it is.
        """
        if self.teacher is not self.source.model or not self.family.is_recogniser(removed):
            return
        if removed.config.num_hidden_layers not in self.layers or getattr(removed.config, "add_adapter", False):
            return
        head = removed.lm_head
        shared = distillation.maps["shared"].to(head.weight.device)
        head.bias += head.weight @ shared.bias
        head.weight.copy_(head.weight @ shared.weight)


def _trained(*modules: nn.Module) -> list[nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]


def _heads(objective: nn.Module) -> dict[str, torch.Tensor]:
    """What an objective has beside its student."""
    return {name: value for name, value in objective.state_dict().items() if not name.startswith("student.")}


def free_axes(model: Model, fixed: Collection[str]) -> tuple[Axis, ...]:
    """The axes that may shrink: those of other kinds than `fixed`."""
    free = [axis for axis in family_of(model).axes(model) if axis.kind not in fixed]
    names = {axis.name for axis in free}
    return tuple(axis if axis.parent in names else replace(axis, parent=None) for axis in free)


def shape_before(model: Model) -> Shape:
    """The shape of a model that was compressed before; nothing for any other."""
    shape: Shape = dict(getattr(model.config, "diminuendo", {}).get("shape", {}))
    return shape


def _any_members(size: int, kept: int | list[int]) -> torch.Tensor:
    count = kept if isinstance(kept, int) else len(kept)
    return torch.arange(size) < count


@torch.inference_mode()
def removal_error(removed: Model, gated: Model, extractor: Any, batch: Batch) -> float:
    """The largest ||a - b|| / ||b|| over hidden states, valid frames only, in fp32."""
    family, device = family_of(gated), gated.device
    lengths = batch.lengths.to(device)
    inputs = model_inputs(extractor, batch.waveforms.to(device), lengths)
    # TensorFloat-32, on by default in convolutions on GPUs, has a relative precision of 1e-3.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        states = family.hidden_states(removed.to(device), inputs), family.hidden_states(gated, inputs)
    valid = None
    errors = []
    for a, b in zip(*states, strict=True):
        valid = valid_frames(family.frame_lengths(gated, lengths), b.shape[1]) if valid is None else valid
        errors.append(float((a - b)[valid].norm() / b[valid].norm()))
    return max(errors)
