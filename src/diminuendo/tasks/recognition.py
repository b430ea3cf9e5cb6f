"""What a recogniser is trained with: the loss of its task, from the encoder's last states."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.loss.loss_tdt import tdt_loss

from diminuendo.families import Model, family_of, stream_width
from diminuendo.families.transducer import is_transducer
from diminuendo.tasks.ctc import ctc_loss, flat_alignment
from diminuendo.tasks.transducer import joint_logits, predict
from diminuendo.tasks.transducer_loss import transducer_loss

Scalars = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Labels:
    """Token ids of a batch's texts, padded with the blank, and how many each has."""

    ids: Int[Tensor, "batch labels"]
    lengths: Int[Tensor, " batch"]

    @property
    def count(self) -> int:
        """How many labels there are, at least 1."""
        return max(1, int(self.lengths.sum()))


def blank_of(model: Model) -> int:
    """The id of the blank: that of padding, in a CTC recogniser."""
    config = model.config
    return int(config.blank_token_id if is_transducer(model) else config.pad_token_id)


def padded(texts: Sequence[Sequence[int]], blank: int, device: torch.device | str = "cpu") -> Labels:
    lengths = torch.tensor([len(text) for text in texts])
    ids = torch.full((len(texts), int(lengths.max())), blank)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = torch.tensor(text, dtype=torch.long)
    return Labels(ids.to(device), lengths.to(device))


def frame_logits(model: Model, states: Float[Tensor, "batch frames dim"]) -> Float[Tensor, "batch frames vocabulary"]:
    """What a CTC recogniser makes of the encoder's last states."""
    logits: Tensor = family_of(model).head(model)(states)
    return logits


def output_logits(model: Model, states: Float[Tensor, "batch frames dim"], labels: Labels) -> Tensor:
    """Of CTC [batch, frames, vocabulary], of a transducer [batch, frames, labels + 1, vocabulary]."""
    if not is_transducer(model):
        return frame_logits(model, states)
    return joint_logits(model, model.encoder_projector(states), predict(model, labels.ids))


class RecognitionLoss(nn.Module):
    """Negative log likelihood of the texts, per label of the batch: CTC, RNN-T or TDT, as the model recognises.

    ctc_weight: of CTC by a head of its own beside a transducer's loss; 0 for none. The head is a help in training and
    belongs to no model.
    """

    def __init__(self, model: Model, ctc_weight: float = 0.0) -> None:
        super().__init__()
        self.blank, self.ctc_weight = blank_of(model), ctc_weight
        beside = is_transducer(model) and ctc_weight > 0
        self.ctc_head = nn.Linear(stream_width(model), int(model.config.vocab_size)) if beside else None

    def forward(
        self,
        model: Model,
        states: Float[Tensor, "batch frames dim"],
        counts: Int[Tensor, " batch"],
        labels: Labels,
        flat: float = 0.0,
    ) -> Scalars:
        """`loss`, and `ctc` and `rnnt` where it is of both. counts: each clip's own frames.

        flat: how much of the loss is that of a flat start, cross-entropy of frames by `flat_alignment`; it needs a head
        for CTC. With all of it nothing else is computed.
        """
        logits = output_logits(model, states, labels) if self.reads_logits(flat) else None
        return self.of(model, logits, states, counts, labels, flat)

    def reads_logits(self, flat: float) -> bool:
        """Whether the loss is of what the model puts out, not of the head for CTC beside it alone."""
        return flat < 1 or self.ctc_head is None

    def of(
        self,
        model: Model,
        logits: Tensor | None,
        states: Float[Tensor, "batch frames dim"],
        counts: Int[Tensor, " batch"],
        labels: Labels,
        flat: float = 0.0,
    ) -> Scalars:
        """The same from the model's logits, where they are there already; None where they are not read."""
        if flat == 1:
            return {"loss": self._flat(self._frames(logits, states), counts, labels)}
        assert logits is not None
        found = self._task(model, logits, states, counts, labels)
        if flat:
            begun = self._flat(self._frames(logits, states), counts, labels)
            found["loss"] = flat * begun + (1 - flat) * found["loss"]
        return found

    def _frames(self, logits: Tensor | None, states: Tensor) -> Tensor:
        """What CTC reads: of a transducer its head beside it, otherwise the model's own logits."""
        if self.ctc_head is None:
            assert logits is not None
            return logits
        beside: Tensor = self.ctc_head(states)
        return beside

    def _flat(self, logits: Tensor, counts: Tensor, labels: Labels) -> Tensor:
        wanted = flat_alignment(labels.ids, labels.lengths, counts, self.blank)
        return F.cross_entropy(logits[:, : wanted.shape[1]].float().flatten(0, 1), wanted.flatten(), ignore_index=-100)

    def _task(self, model: Model, logits: Tensor, states: Tensor, counts: Tensor, labels: Labels) -> Scalars:
        if not is_transducer(model):
            return {"loss": self._ctc(logits, counts, labels)}
        transducer = self._transducer(model, logits, counts, labels)
        if self.ctc_head is None:
            return {"loss": transducer}
        ctc = self._ctc(self.ctc_head(states), counts, labels)
        return {"loss": transducer + self.ctc_weight * ctc, "rnnt": transducer, "ctc": ctc}

    def _ctc(self, logits: Tensor, counts: Tensor, labels: Labels) -> Tensor:
        total: Tensor = ctc_loss(logits, counts, labels.ids, labels.lengths, self.blank) * len(counts)
        return total / labels.count

    def _transducer(self, model: Model, logits: Tensor, counts: Tensor, labels: Labels) -> Tensor:
        if family_of(model).task_of(model) == "tdt":
            size = int(model.config.vocab_size)
            total: Tensor = tdt_loss(
                logits[..., :size],
                logits[..., size:],
                labels.ids.int(),
                counts.int(),
                labels.lengths.int(),
                self.blank,
                model.config.durations,
                reduction="sum",
            )
            return total / labels.count
        return transducer_loss(logits, labels.ids, counts, labels.lengths, self.blank, "sum") / labels.count
