"""What a recogniser's training minimises: the loss of its task, alone or beside distillation."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from diminuendo.distillation.hidden import HiddenDistillation
from diminuendo.distillation.posteriors import (
    Posteriors,
    along,
    best_path,
    collapsed_lattice,
    ctc_posteriors,
    one_best_path,
)
from diminuendo.families import Model, family_of
from diminuendo.families.transducer import is_transducer
from diminuendo.modules.transducer import TRANSDUCER_AXES
from diminuendo.structure.axis import Axis, Slice
from diminuendo.tasks.recognition import Labels, RecognitionLoss, Scalars, output_logits, padded
from diminuendo.tasks.transducer_loss import lattice
from diminuendo.training.hearing import Hearing
from diminuendo.training.loop import Texts
from diminuendo.training.objective import Teacher, cut_to_both


class RecognitionObjective(nn.Module):
    """The loss of a recogniser's task, in training mode: the encoder's dropout is as its configuration has it."""

    def __init__(self, model: Model, extractor: Any, hearing: Hearing, *, ctc_weight: float = 0.0) -> None:
        super().__init__()
        self.student, self.loss = model, RecognitionLoss(model, ctc_weight)
        self.extractor, self.hearing = extractor, hearing
        freeze_mask(model)

    def forward(self, waveforms: Tensor, lengths: Int[Tensor, " batch"], step: int, draw: int, texts: Texts) -> Scalars:
        """`loss` and its parts for clips [batch, samples] and the ids of their labels."""
        family = family_of(self.student)
        inputs = self.hearing.inputs(self.student, self.extractor, waveforms, lengths, step, draw)
        states = family.encoder(self.student)(**inputs).last_hidden_state
        counts = family.frame_lengths(self.student, lengths)
        labels = padded(texts, self.loss.blank, states.device)
        scalars: Scalars = self.loss(self.student, states, counts, labels, self.hearing.flat(step))
        return scalars


@dataclass(frozen=True)
class Weights:
    """Of the parts of a loss: the task's, hidden states', posteriors'."""

    task: float = 1.0
    hidden: float = 1.0
    posteriors: float = 0.0


class TaughtRecognition(nn.Module):
    """The loss of a recogniser's task beside distillation of hidden states and of posteriors, each with its weight.

    Like the teacher the student stays in evaluation mode: what shrinks is compared with what does not. norms_by_batch:
    of a student with fresh weights, whose batch norms know no statistics yet, these norm by the batch. Both hear the
    same masked input, but a teacher with an extractor of its own, or without an embedding of masked frames, hears all.
    The posteriors are those of CTC's frames, or of a transducer's lattice or the teacher's best path through it
    (`posteriors`), of a teacher with the same labels; TDT has none.
    """

    def __init__(
        self,
        student: Model,
        teacher: Teacher,
        extractor: Any,
        distillation: HiddenDistillation,
        hearing: Hearing,
        weights: Weights,
        *,
        ctc_weight: float = 0.0,
        posteriors: Posteriors = "lattice",
        norms_by_batch: bool = False,
    ) -> None:
        super().__init__()
        self.student, self.distillation, self.task = student, distillation, RecognitionLoss(student, ctc_weight)
        self.posteriors, self.norms_by_batch = posteriors, norms_by_batch
        self.teacher, self.extractor, self.hearing, self.weights = teacher, extractor, hearing, weights
        if not weights.hidden:
            distillation.requires_grad_(False)
        freeze_mask(student)

    def readers(self, width: Axis) -> Axis:
        """What of the loss reads the student's states, as a part of the axis of their width."""
        pieces = [Slice(f"distillation.{name}", 1) for name in self.distillation.readers]
        if self.task.ctc_head is not None:
            pieces.append(Slice("task.ctc_head.weight", 1))
        return replace(width, slices=tuple(pieces), gates=tuple(pieces), norms=())

    def unseen(self, step: int) -> tuple[str, ...]:
        """Axes whose members this step's loss does not depend on: a transducer's, in a flat start."""
        return () if self._reads_logits(self.hearing.flat(step)) else TRANSDUCER_AXES

    def _reads_logits(self, flat: float) -> bool:
        return bool(self.weights.posteriors) or self.task.reads_logits(flat)

    def train(self, mode: bool = True) -> "TaughtRecognition":
        super().train(mode)
        in_evaluation(self.student, mode)
        for module in self.student.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.train(mode and self.norms_by_batch)
        return self

    def forward(self, waveforms: Tensor, lengths: Int[Tensor, " batch"], step: int, draw: int, texts: Texts) -> Scalars:
        """`loss`, and its parts without their weights: `task` (of a flat start its own), `hidden` and its parts,
        `posteriors`."""
        family, weights = family_of(self.student), self.weights
        inputs = self.hearing.inputs(self.student, self.extractor, waveforms, lengths, step, draw)
        states = family.hidden_states(self.student, inputs)
        counts = family.frame_lengths(self.student, lengths)
        labels = padded(texts, self.task.blank, states[-1].device)
        flat = self.hearing.flat(step)
        read = self._reads_logits(flat)
        logits = output_logits(self.student, states[-1], labels) if read else None
        found: Scalars = {"task": self.task.of(self.student, logits, states[-1], counts, labels, flat)["loss"]}
        loss = weights.task * found["task"]
        if weights.hidden or weights.posteriors:
            wanted = {*self.distillation.wanted, len(states) - 1}
            targets = self.teacher.states(waveforms, lengths, self.extractor, inputs, wanted)
            both, kept, taught_states = cut_to_both(states, targets, counts, self.teacher.frame_lengths(lengths))
            if weights.hidden:
                parts = self.distillation(kept, taught_states, both)
                found |= {**parts, "hidden": parts["loss"]}
                loss = loss + weights.hidden * found["hidden"]
            if logits is not None and weights.posteriors:
                taught = self._teacher_logits(taught_states[-1], labels)
                found["posteriors"] = self._posteriors(logits[:, : taught.shape[1]], taught, both, labels)
                loss = loss + weights.posteriors * found["posteriors"]
        return {**found, "loss": loss}

    @torch.no_grad()
    def _teacher_logits(self, states: Tensor, labels: Labels) -> Tensor:
        return output_logits(self.teacher.model, states, labels)

    def _posteriors(self, logits: Tensor, taught: Tensor, counts: Tensor, labels: Labels) -> Tensor:
        blank = self.task.blank
        if not is_transducer(self.student):
            return ctc_posteriors(logits, taught, counts, blank)["loss"]
        known = lattice(taught, labels.ids, blank, counts, labels.lengths)
        if self.posteriors == "path":
            path = best_path(*known, counts, labels.lengths)
            return one_best_path(along(logits, path), along(taught, path), path.valid)
        nodes = lattice(logits, labels.ids, blank, counts, labels.lengths)
        return collapsed_lattice(nodes, known, counts, labels.lengths)


def in_evaluation(model: Model, gradients: bool = True) -> None:
    """A model as it recognises, whether or not there are gradients, which cuDNN has not of an LSTM in evaluation."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.LSTM):  # without dropout training is the same
            module.train(gradients)


def freeze_mask(model: Model) -> None:
    """Excludes from training what masked frames become: they need not be in every batch."""
    mask = getattr(family_of(model).encoder(model), "masked_spec_embed", None)
    if mask is not None:
        mask.requires_grad_(False)
