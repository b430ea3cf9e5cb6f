"""The recogniser that is trained: MODEL itself, or its encoder with a new head; and what it can learn of a teacher."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from lhotse import CutSet

from diminuendo.data.tokens import (
    Tokens,
    load_tokens,
    make_tokenizer,
)
from diminuendo.errors import UserError
from diminuendo.families import Model, family_of, stream_width
from diminuendo.families.family import Task
from diminuendo.families.recogniser import with_head
from diminuendo.families.transducer import is_transducer
from diminuendo.training.compress_config import CompressConfig
from diminuendo.training.recognition_config import RecognitionConfig
from diminuendo.training.removing import Source

log = logging.getLogger(__name__)

WIDEST = 640  # a new transducer, unless it is told


@dataclass(frozen=True)
class Pupil:
    """task: as the configuration has it, "own" resolved. new: whether the head is."""

    model: Model
    tokens: Tokens
    task: str
    new: bool

    @property
    def ctc_beside(self) -> bool:
        """Whether the encoder of a transducer has a CTC head too while it is trained."""
        return self.task == "ctc+rnnt"

    @property
    def predictor_width(self) -> int | None:
        """Of a new transducer; what is kept has the width that it has."""
        return self.model.config.decoder_hidden_size if self.new and is_transducer(self.model) else None


def pupil_of(source: Source, cuts: CutSet, config: RecognitionConfig) -> Pupil:
    """What `config` makes of MODEL; a new head is drawn from the seed.

    UserError for a task that the family has no recogniser for, a flat start of one without CTC, lookaheads for a model
    that does not stream, a stateless predictor where none is new, a recogniser without its tokenizer, and texts that
    give no tokens.
    """
    family = family_of(source.model)
    if config.lookaheads is not None and not family.streams:
        raise UserError(f"lookaheads: {source.name} is no streaming model, it hears whole clips; leave lookaheads out")
    if getattr(family.encoder(source.model).config, "add_adapter", False):
        raise UserError(
            f"{source.name} has an adapter behind its encoder, whose frames are not counted here; give another"
        )
    torch.manual_seed(config.seed)
    own = family.task_of(source.model)
    task = (own or "ctc+rnnt") if config.task == "own" else str(config.task)
    head: Task = "rnnt" if task == "ctc+rnnt" else task  # type: ignore[assignment]
    if config.flat_start and "ctc" not in task:
        raise UserError(f"flat_start: --task {task} has no CTC to start with; give ctc+rnnt, or leave it out")
    if config.flat_start and task == "ctc+rnnt" and not config.ctc_weight:
        raise UserError("flat_start: it needs CTC beside the RNN-T, which ctc_weight 0 leaves out; give more, like 0.3")
    keeps_tokens = own is not None and config.tokens is None
    if config.predictor == "stateless" and (head == "ctc" or (keeps_tokens and own == head)):
        why = f"--task {task} has no predictor" if head == "ctc" else f"MODEL keeps its head, by {own}"
        raise UserError(f"predictor stateless: {why}; give an encoder and --task rnnt, or leave predictor out")
    if keeps_tokens and own == head:
        return Pupil(source.model, load_tokens(str(source.name), source.model.config), task, new=False)
    tokens = load_tokens(str(source.name), source.model.config) if keeps_tokens else _new_tokens(cuts, config)
    if tokens.blank != tokens.size - 1:
        raise UserError(
            f"MODEL's tokens have their blank at {tokens.blank}, a new head has it last; give --tokens, for new ones"
        )
    recogniser = with_head(
        source.model,
        head,
        tokens.size - 1,
        width=config.predictor_width or min(WIDEST, stream_width(source.model)),
        layers=config.predictor_layers,
        predictor=config.predictor,
    )
    return Pupil(recogniser, tokens, task, new=True)


def _new_tokens(cuts: CutSet, config: RecognitionConfig) -> Tokens:
    kind = config.tokens or "characters"
    texts = [supervision.text for cut in cuts for supervision in cut.supervisions if supervision.text]
    if not texts:
        raise UserError("DATA has no texts, which a recogniser is trained on; give rows with `text`")
    return Tokens.of(make_tokenizer(kind, texts, config.token_count if kind == "pieces" else None))


def posterior_weight_of(config: CompressConfig, pupil: Pupil, teacher: Source | None) -> float:
    """The configuration's posterior_weight; None resolved, to 1 where there are posteriors to learn from, else 0.

    teacher: None for the pupil itself as it came. UserError for a weight where there are none.
    """
    if teacher is None and pupil.new:
        why = "MODEL's head is new and teaches nothing; give a recogniser as --teacher"
    else:
        model = pupil.model if teacher is None else teacher.model
        kinds: list[Any] = [
            (family_of(one).task_of(one), getattr(one.config, "vocab_size", 0)) for one in (pupil.model, model)
        ]
        if teacher is not None and kinds[0] == kinds[1]:
            its_own = load_tokens(str(teacher.name), model.config)
            same = (its_own.labels, its_own.blank) == (pupil.tokens.labels, pupil.tokens.blank)
            kinds[1] = kinds[1] if same else (kinds[1][0], f"{kinds[1][1]} other")
        if kinds[0] == kinds[1] and kinds[0][0] != "tdt":
            return 1.0 if config.posterior_weight is None else config.posterior_weight
        (mine, tokens), (its, its_tokens) = kinds
        why = f"the student recognises by {mine} with {tokens} tokens, the teacher by {its} with {its_tokens}"
    if config.posterior_weight:
        raise UserError(
            f"posterior_weight: {why}; expected a teacher by CTC or RNN-T with the same tokens, or leave it out"
        )
    if config.posterior_weight is None:
        log.info("no posteriors are learned: %s", why)
    return 0.0


def check_path(config: CompressConfig, pupil: Pupil) -> None:
    """UserError if posteriors are to be learned along a path of a lattice, and there is none.

    config: one whose posterior_weight is known.
    """
    if config.posteriors == "path" and not (config.posterior_weight and is_transducer(pupil.model)):
        given = (
            f"MODEL recognises by {pupil.task}" if config.posterior_weight else "none are learned (posterior_weight)"
        )
        raise UserError(f"posteriors path: {given}; expected an RNN-T and a teacher with its labels, or leave it out")
