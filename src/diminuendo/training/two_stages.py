"""The two stages of a compression (DPHuBERT): learn what can go while distilling, remove it, distil what is left."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from lhotse import CutSet
from torch import nn

from diminuendo.data.batching import Batch, look_at_one
from diminuendo.distillation.clusters import ClusterDistillation, DiscriminativeDistillation, TeacherClusters
from diminuendo.distillation.hidden import HiddenDistillation
from diminuendo.errors import UserError
from diminuendo.families import Model, encoder_config, family_of, stream_width
from diminuendo.pruning.budget import select, selected_cost
from diminuendo.pruning.gating import KEPT_GATE_FLOOR, Gates, attach, plain_state
from diminuendo.pruning.removal import remove
from diminuendo.structure.axis import Selection
from diminuendo.structure.cost import CostModel
from diminuendo.tasks.best_rq import BestRQ
from diminuendo.tasks.selfsupervised import MaskedPrediction
from diminuendo.training.clusters import layer_of
from diminuendo.training.compress_config import CompressConfig
from diminuendo.training.hearing import hearing_of
from diminuendo.training.kernels import choose_attention, convolution_chosen
from diminuendo.training.labelled import Clips
from diminuendo.training.loop import Group, Loop, Stage, Texts
from diminuendo.training.objective import DistillationObjective, JointObjective, Teacher, none_unseen
from diminuendo.training.own_prediction import own_prediction
from diminuendo.training.recognition import TaughtRecognition, Weights
from diminuendo.training.removing import Source, free_axes, gateable, remove_and_compare, removed_again
from diminuendo.training.schedules import Schedule, again, constant, warm_up_then_decay

log = logging.getLogger(__name__)

OFF_BUDGET = 0.02

Objective = DistillationObjective | TaughtRecognition | MaskedPrediction | BestRQ


class TwoStages:
    """The two stages of one compression. `config` is a resolved one.

    clips: what the audio says, where the model learns to recognise it. before: the model as it came, where that is
    another than the source, which hears filter banks in the place of the waveform.
    """

    def __init__(
        self,
        source: Source,
        teacher: Source,
        cuts: CutSet,
        config: CompressConfig,
        cost: CostModel,
        total: float,
        clips: Clips | None = None,
        before: Source | None = None,
    ) -> None:
        self.source, self.teacher, self.cuts, self.config = source, teacher, cuts, config
        self.before = source if before is None else before
        self.clips = clips
        self.layers, self.cost, self.total = config.layers or (), cost, total
        self.family = family_of(source.model)
        self.clusters: TeacherClusters | None = None  # of the teacher, where they are learned
        self.norms_by_batch = False  # of a student whose layers know no statistics yet

    def _distillation(self, student: Model) -> HiddenDistillation:
        config = self.config
        student_dim, teacher_dim = stream_width(student), stream_width(self.teacher.model)
        torch.manual_seed(config.seed)
        settings: dict[str, Any] = {
            "cosine": config.cosine,
            "cosine_weight": config.cosine_weight,
            "matching": config.matching,
            "maps": config.maps,
        }
        if config.discriminative is None:
            return HiddenDistillation(self.layers, student_dim, teacher_dim, **settings)
        assert self.clusters is not None
        layer = layer_of(self.teacher, config)
        clusters = ClusterDistillation(self.clusters, student_dim, layer=layer, form=config.discriminative)
        settings |= {"weight": config.regression_weight, "cluster_weight": config.cluster_weight}
        return DiscriminativeDistillation(self.layers, student_dim, teacher_dim, clusters, **settings)

    def _objective(self, student: Model, device: torch.device) -> Objective:
        """What both stages minimise, with a fresh state; the student is ours, its attention the fastest to train."""
        choose_attention(student, self.config, device)
        if self.config.objective == "masked_prediction":
            return own_prediction(self.source.name, student, self.source.extractor, self.config.seed)
        teacher, extractor = Teacher(self.teacher.model, self.teacher.extractor), self.source.extractor
        distillation, hearing = self._distillation(student), hearing_of(self.config, student)
        fresh = {"norms_by_batch": self.norms_by_batch}
        if self.clips is None:
            return DistillationObjective(student, teacher, extractor, distillation, hearing, **fresh)
        config = self.config
        weights = Weights(config.task_weight, config.hidden_weight, config.posterior_weight or 0.0)
        ctc_weight = config.ctc_weight if self.clips.pupil.ctc_beside else 0.0
        settings: dict[str, Any] = {"ctc_weight": ctc_weight, "posteriors": config.posteriors, **fresh}
        return TaughtRecognition(student, teacher, extractor, distillation, hearing, weights, **settings)

    @property
    def crops(self) -> bool:
        """Whether a batch's clips are cropped: not where they have texts, which are of the whole clips."""
        return self.config.crop_to_shortest and self.clips is None

    @property
    def _texts(self) -> Callable[[Batch], tuple[Batch, Texts]] | None:
        return None if self.clips is None else self.clips.texts

    def _labelled(self, batch: Batch) -> tuple[Batch, tuple[Texts, ...]]:
        """A batch as an objective takes it. UserError if none of its clips has a text that can be used."""
        if self.clips is None:
            return batch, ()
        batch, texts = self.clips.texts(batch)
        if not texts:
            raise UserError("no clip of the first batch has a text that can be used; check the texts in DATA")
        return batch, (texts,)

    def _groups(self, objective: Any, rate: float, schedule: Schedule) -> list[Group]:
        """All that is trained; a new head has a rate of its own."""
        trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        new = self.clips is not None and (self.clips.pupil.new or self.config.method == "student")
        inside = {id(parameter) for parameter in self.family.encoder(objective.student).parameters()}
        maps = {id(parameter) for parameter in getattr(objective, "distillation", nn.Module()).parameters()}
        head = [p for p in trained if new and id(p) not in inside and id(p) not in maps]
        fresh = {id(parameter) for parameter in head}
        rest = [parameter for parameter in trained if id(parameter) not in fresh]
        decay = self.config.weight_decay
        groups = [Group(rest, rate, schedule, weight_decay=decay)]
        return groups + ([Group(head, self.config.head_learning_rate, schedule, weight_decay=decay)] if head else [])

    def _first_schedule(self) -> Schedule:
        """Of the stage that learns what goes, or of both."""
        config = self.config
        return warm_up_then_decay(config.steps + config.goes_on * config.second_stage_steps, config.warm_up)

    def _joint_objective(self, device: torch.device) -> JointObjective:
        # Gates are attached on the CPU: there they have their first values.
        config, student = self.config, gateable(self.source.model, factored=self.config.factored).cpu()
        rates = {"neurons": config.neuron_drop_rate or config.drop_rate}
        gates = Gates(
            free_axes(student, config.fixed_kinds, head=config.head_free),
            drop_rate=config.drop_rate,
            drop_rates=rates,
            seed=config.seed,
        )
        objective = self._objective(student, device)
        attach(student, gates)
        if width := [axis for axis in gates.axes if axis.kind == "width"]:
            assert isinstance(objective, DistillationObjective | TaughtRecognition)
            attach(objective, gates, [objective.readers(width[0])])
        return JointObjective(
            objective,
            name=config.objective if self.clips is None else "recognition",
            gates=gates,
            cost=self.cost,
            kind=config.budget.kind,
            total=self.total,
            removed=1.0 - config.budget.amount(self.total) / self.total,
            ramp_steps=round(config.steps * config.ramp),
            two_sided=config.two_sided,
            unseen=objective.unseen if isinstance(objective, TaughtRecognition) else none_unseen,
        ).to(device)

    def first(self, trainer: Loop) -> Model:
        """The removed model; `carried` has what the second stage and the result have to know of the first.

        Where nothing is learned, `remove_in_rounds` is what comes first.
        """
        if trainer.resumed_stage == "distil":
            shape, config = trainer.carried["shape"], self.config
            head = config.head_free
            return removed_again(self.source, shape, config.fixed_kinds, factored=config.factored, head=head)
        objective, config = self._joint_objective(trainer.accelerator.device), self.config
        if "sampling_at_start" not in trainer.carried:
            trainer.carried["sampling_at_start"] = self._sampling_at_start(objective)
        multipliers = list(objective.multipliers.parameters())
        schedule = self._first_schedule()
        groups = [
            *self._groups(objective.objective, config.learning_rate, schedule),
            Group([objective.gates.log_alpha], config.gate_rate, constant, clipped=False),
            Group(multipliers, config.multiplier_rate, constant, maximize=True, clipped=False),
        ]
        stage = Stage("joint", config.steps, objective, groups, after_step=objective.clamp, texts=self._texts)
        skipped = trainer.run_stage(stage, self.cuts, crop_to_shortest=self.crops)
        removed, facts = self._remove(objective)
        at_start = trainer.carried["sampling_at_start"]
        trainer.carried = {**facts, "sampling_at_start": at_start, "skipped": skipped}
        return removed

    @torch.no_grad()
    def _sampling_at_start(self, objective: JointObjective) -> float:
        """The distillation loss that sampled gates cause before anything is learned."""
        batch, texts = self._labelled(self.check_batch)
        device = objective.gates.log_alpha.device
        scalars = objective(batch.waveforms.to(device), batch.lengths.to(device), 0, 0, *texts)
        loss = float(scalars[objective.name])
        log.info("with gates sampled at the start the %s loss is %.4f", objective.name.replace("_", " "), loss)
        return loss

    def time_a_step(self, device: torch.device, student: Model | None = None) -> float:
        """Seconds of one step, the second of two; nothing is kept of them.

        student: one made by hand; None for a step as in the end of the joint stage.
        """
        objective = self._joint_objective(device) if student is None else self._objective(student, device).to(device)
        objective.train()
        batch, texts = self._labelled(look_at_one(self.cuts, self.config.batch_settings(crop_to_shortest=self.crops)))
        seconds = 0.0
        for _ in range(2):
            started = time.perf_counter()
            autocast = torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bf16")
            with autocast, convolution_chosen(objective):  # as in the loop
                scalars = objective(batch.waveforms.to(device), batch.lengths.to(device), self.config.steps, 0, *texts)
            scalars["loss"].backward()
            float(scalars["loss"].detach())  # waits for the device
            seconds = time.perf_counter() - started
        return seconds

    def _remove(self, objective: JointObjective) -> tuple[Model, dict[str, Any]]:
        config, gates = self.config, objective.gates
        with torch.no_grad():
            expected = float(objective.expected_kept())
        scores = {axis.name: gates.log_alpha.detach()[gates.of(axis.name)].cpu() for axis in gates.axes}
        selection = select(self.cost, config.budget, self.total, scores, config.round_to)
        # First with gates of 1: of a member that was kept though shut, a wrong weight would hardly be seen.
        floors = (1.0, KEPT_GATE_FLOOR)
        removal = remove_and_compare(self.source, objective.student, gates, selection, floors, self.check_batch)
        kept = selected_cost(self.cost, config.budget.kind, selection) / self.total
        if expected - kept > OFF_BUDGET:
            log.warning(
                "the gates would keep %.3f, the selection keeps %.3f, so it removes what is open: more steps, or a "
                "higher gate_learning_rate or multiplier_learning_rate, would let them close",
                expected,
                kept,
            )
        elif kept - expected > OFF_BUDGET:
            log.info(
                "the gates would keep %.3f; the selection opens the best of what is shut, up to %.3f", expected, kept
            )
        facts = {
            "shape": removal.shape,
            "expected_before_selection": expected,
            "removal_error": removal.error,
            "heads": heads_after(objective.objective, gates, selection),
        }
        return removal.model, facts

    @cached_property
    def check_batch(self) -> Batch:
        """Some real audio, padded, to check the removal on. UserError if no clip can be used."""
        settings = self.config.batch_settings(crop_to_shortest=False)
        settings = replace(settings, seconds_per_batch=min(30.0, max(settings.seconds_per_batch, settings.max_seconds)))
        return look_at_one(self.cuts, settings)

    def recover(self, trainer: Loop, removed: Model, name: str, order: int) -> None:
        """Distils what is left after one of several rounds of removal, in place."""
        objective = self._objective_again(trainer, removed)
        self._distil(trainer, objective, name, self.config.round_steps, offset=order * self.config.round_steps)
        trainer.carried["heads"] = _heads(objective)

    def second(self, trainer: Loop, removed: Model) -> None:
        """Goes on with the removed model, in place, and says in `carried` what was skipped so far."""
        objective = self._objective_again(trainer, removed)
        before, steps = self.config.stage_steps
        if steps:
            self._distil(trainer, objective, "distil", steps, offset=before)
        if isinstance(objective, DistillationObjective):  # else the head has learned what there is to read
            self._fold_map(removed, objective.distillation)

    def _objective_again(self, trainer: Loop, removed: Model) -> Objective:
        """What a removed model minimises, from where the stage before left off."""
        objective = self._objective(removed, trainer.accelerator.device)
        objective.load_state_dict({**objective.state_dict(), **trainer.carried.get("heads", {})})
        return objective

    def heads_for(self, trainer: Loop, model: Model, gates: Gates, selection: Selection) -> dict[str, torch.Tensor]:
        """What the objective of `model` has beside it, of the width that a selection leaves."""
        return heads_after(self._objective_again(trainer, model), gates, selection)

    def _distil(self, trainer: Loop, objective: nn.Module, name: str, steps: int, offset: int) -> None:
        config = self.config
        schedule, rate = warm_up_then_decay(steps, config.distil_warm_up), config.distil_learning_rate
        if config.goes_on:
            schedule, rate = again(self._first_schedule(), offset, steps, config.distil_warm_up), config.learning_rate
        groups = self._groups(objective, rate, schedule)
        named = "learning_rate" if config.goes_on else "distil_learning_rate"
        stage = Stage(name, steps, objective, groups, offset=offset, texts=self._texts, rate=named)
        order = 1 if name == "distil" else 2 + offset  # apart from the batches of other stages
        skipped = trainer.run_stage(stage, self.cuts, crop_to_shortest=self.crops, order=order)
        trainer.carried["skipped"] = skipped

    @torch.no_grad()
    def _fold_map(self, removed: Model, distillation: HiddenDistillation) -> None:
        """Lets a recogniser's head read what was distilled: not the last states but what the map makes of them.

        Where the teacher is another model than MODEL the head is of neither's states, and stays as it is.
        """
        if not self.family.is_recogniser(removed):
            return
        if self.teacher.model is not self.before.model:
            log.warning(
                "MODEL's head reads states that follow another model's now: `diminuendo finetune` lets it learn them"
            )
            return
        encoder = encoder_config(removed)
        if encoder.num_hidden_layers not in distillation.layers or getattr(encoder, "add_adapter", False):
            return
        head = self.family.head(removed)
        last = distillation.maps[distillation.map_of(encoder.num_hidden_layers)].to(head.weight.device)
        weight = self.family.head(self.source.model).weight.to(head.weight).flatten(1)  # all of it, of what is read
        head.bias += weight @ last.bias
        head.weight.copy_((weight @ last.weight).view_as(head.weight))


def _heads(objective: nn.Module) -> dict[str, torch.Tensor]:
    """What an objective has beside its student."""
    return {
        f"{name}.{key}": value.cpu()
        for name, child in objective.named_children()
        if name != "student"
        for key, value in plain_state(child).items()
    }


def heads_after(objective: Any, gates: Gates, selection: Selection) -> dict[str, torch.Tensor]:
    """What an objective has beside its student, of the width that a selection leaves of the student's states."""
    width = [axis for axis in gates.axes if axis.kind == "width"]
    readers = tuple(objective.readers(axis) for axis in width if hasattr(objective, "readers"))
    return remove(readers, _heads(objective), selection)
