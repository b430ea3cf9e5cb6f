"""What is minimised: distillation, and with gates the budget. Here pruning and distillation meet."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from diminuendo.distillation.hidden import HiddenDistillation
from diminuendo.families import Model, family_of, model_inputs
from diminuendo.pruning.budget import CostKind, Multipliers
from diminuendo.pruning.gating import Gates
from diminuendo.structure.axis import Axis, Slice
from diminuendo.structure.cost import CostModel
from diminuendo.tasks.augment import takes_masks
from diminuendo.training.hearing import Hearing
from diminuendo.training.kernels import convolution_chosen

Scalars = dict[str, Tensor]


class Teacher:
    """A frozen model whose states are learned. No module, so that it is neither saved, moved, nor synchronised.

    extractor: its own, where it is not the student's.
    """

    def __init__(self, model: Model, extractor: Any = None) -> None:
        self.model, self.extractor = family_of(model).fast(model.eval()), extractor

    def frame_lengths(self, lengths: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        return family_of(self.model).frame_lengths(self.model, lengths)

    def states(
        self, waveforms: Tensor, lengths: Tensor, extractor: Any, inputs: Mapping[str, Any], wanted: Collection[int]
    ) -> list[Tensor]:
        """Hidden states, of which the wanted can be learned. inputs: what the student hears, by this extractor.

        A teacher with another extractor hears its own; one that hears whole clips, or takes no masks, hears all.
        """
        family = family_of(self.model)
        if self.extractor is not None and self.extractor.to_dict() != extractor.to_dict():
            inputs = model_inputs(self.extractor, waveforms, lengths)
        else:
            taken = {"num_lookahead_tokens": family.streams, "mask_time_indices": takes_masks(self.model)}
            inputs = {name: value for name, value in inputs.items() if taken.get(name, True)}
        with torch.inference_mode(), convolution_chosen(self.model):
            states = family.hidden_states(self.model, inputs)
        # Inference tensors cannot be saved for a backward pass: the few that are compared are copied out.
        return [state.clone() if layer in wanted else state for layer, state in enumerate(states)]


def cut_to_both(
    states: Sequence[Tensor], targets: Sequence[Tensor], counts: Int[Tensor, " batch"], its: Int[Tensor, " batch"]
) -> tuple[Int[Tensor, " batch"], list[Tensor], list[Tensor]]:
    """Frames that student and teacher both have, states [batch, frames, dim]: a model that looks back has one more.

    counts, its: each clip's own frames, of the student and of the teacher. Gives those of both, and both's states.
    """
    frames = min(states[0].shape[1], targets[0].shape[1])
    return torch.minimum(counts, its), [one[:, :frames] for one in states], [one[:, :frames] for one in targets]


class DistillationObjective(nn.Module):
    """The distillation loss of a student, gated or not, against a frozen teacher.

    Student and teacher stay in evaluation mode also while training: in training mode transformers models mask time,
    drop layers and change batch norms' statistics, and none of that belongs into a comparison of two models.
    hearing: with lookaheads, where both stream; a teacher that hears whole clips hears them.
    norms_by_batch: of a student with fresh weights, whose batch norms know no statistics yet, these norm by the batch.
    """

    def __init__(
        self,
        student: Model,
        teacher: Teacher | Model,
        extractor: Any,
        distillation: HiddenDistillation,
        hearing: Hearing | None = None,
        *,
        norms_by_batch: bool = False,
    ) -> None:
        super().__init__()
        self.student, self.distillation = student, distillation
        self.extractor, self.norms_by_batch, self.hearing = extractor, norms_by_batch, hearing or Hearing()
        self.teacher = teacher if isinstance(teacher, Teacher) else Teacher(teacher)
        freeze_unused(student)

    def readers(self, width: Axis) -> Axis:
        """What of the loss reads the student's states, as a part of the axis of their width."""
        pieces = tuple(Slice(f"distillation.{name}", 1) for name in self.distillation.readers)
        return replace(width, slices=pieces, gates=pieces, norms=())

    def train(self, mode: bool = True) -> "DistillationObjective":
        super().train(mode)
        self.student.eval()
        for module in self.student.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.train(mode and self.norms_by_batch)
        return self

    def forward(self, waveforms: Tensor, lengths: Int[Tensor, " batch"], step: int, draw: int) -> Scalars:
        """`loss` and its parts for clips [batch, samples]; without lookaheads step and draw matter with gates only."""
        inputs = self.hearing.inputs(self.student, self.extractor, waveforms, lengths, step, draw)
        family = family_of(self.student)
        targets = self.teacher.states(waveforms, lengths, self.extractor, inputs, self.distillation.wanted)
        states = family.hidden_states(self.student, inputs)
        counts = family.frame_lengths(self.student, lengths), self.teacher.frame_lengths(lengths)
        both, own, its = cut_to_both(states, targets, *counts)
        losses: Scalars = self.distillation(own, its, both)
        return losses


def freeze_unused(student: Model) -> None:
    """Excludes from training what hidden states do not depend on: a recogniser's head, the mask embedding."""
    encoder = family_of(student).encoder(student)
    inside = {id(parameter) for parameter in encoder.parameters()}
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(id(parameter) in inside and "masked_spec_embed" not in name)


def none_unseen(step: int) -> tuple[str, ...]:
    """Of a loss that depends on every axis in every step."""
    return ()


class JointObjective(nn.Module):
    """An objective while gates learn what can go: + l1 (s - t) + l2 (s - t)^2, s and t removed fractions of the cost.

    objective: gives `loss` and its parts, of a model on which `gates` are; `name`: what its loss is called beside the
    sum. The target t rises linearly from 0 to `removed` over `ramp_steps` steps. two_sided: as in `Multipliers`.
    unseen: axes that the objective does not depend on in a step. Nothing would hold their members against the budget,
    so it leaves them as they are.
    """

    def __init__(
        self,
        objective: nn.Module,
        *,
        name: str = "distillation",
        gates: Gates,
        cost: CostModel,
        kind: CostKind,
        total: float,
        removed: float,
        ramp_steps: int,
        two_sided: bool = False,
        unseen: Callable[[int], Collection[str]] = none_unseen,
    ) -> None:
        super().__init__()
        self.objective, self.name, self.gates, self.unseen = objective, name, gates, unseen
        self.multipliers = Multipliers(two_sided=two_sided)
        self.cost, self.kind, self.total = cost, kind, total
        self.removed, self.ramp_steps = removed, ramp_steps

    @property
    def student(self) -> Model:
        """The model that the objective is of."""
        student: Model = self.objective.student
        return student

    def clamp(self) -> None:
        """Keeps gates within reach and multipliers of their sign; call after every optimiser step."""
        self.gates.clamp()
        self.multipliers.clamp()

    def target(self, step: int) -> float:
        return self.removed * min(1.0, (step + 1) / max(1, self.ramp_steps))

    def expected_kept(self, unseen: Collection[str] = ()) -> Tensor:
        """The expected fraction of the original's cost that stays; differentiable, but by members of `unseen` axes."""
        probability = self.gates.open_probability.clone()
        for name in self.gates.ranges.keys() & unseen:
            probability[self.gates.of(name)] = probability[self.gates.of(name)].detach()
        return self.cost.expected(self.kind, probability) / self.total

    def forward(self, waveforms: Tensor, lengths: Int[Tensor, " batch"], step: int, draw: int, *texts: Any) -> Scalars:
        """`loss` with the budget in it, the objective's own loss under `name`, and the parts of both."""
        self.gates.sample(draw)
        scalars = self.objective(waveforms, lengths, step, draw, *texts)
        kept, target = self.expected_kept(self.unseen(step)), self.target(step)
        budget = self.multipliers(1.0 - kept, target)
        return {
            **scalars,
            "loss": scalars["loss"] + budget.to(scalars["loss"].dtype),
            self.name: scalars["loss"],
            "expected_kept": kept.detach(),
            "target_kept": torch.tensor(1.0 - target),
            "multiplier_1": self.multipliers.linear.detach(),
            "multiplier_2": self.multipliers.quadratic.detach(),
        }
