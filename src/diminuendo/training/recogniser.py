"""The recogniser that is trained: MODEL itself, or its encoder with a new head, and the texts that it learns."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from lhotse import CutSet
from torch import Tensor

from diminuendo.data.batching import Batch
from diminuendo.data.tokens import Targets, Tokens, check_texts, load_tokens, make_tokenizer, too_long_for_ctc
from diminuendo.errors import UserError
from diminuendo.evaluation.transcripts import Decoding, hypotheses
from diminuendo.families import Model, family_of
from diminuendo.families.family import Task
from diminuendo.families.inputs import SAMPLING_RATE
from diminuendo.families.recogniser import with_head
from diminuendo.families.transducer import is_transducer
from diminuendo.training.compress_config import CompressConfig
from diminuendo.training.loop import Texts
from diminuendo.training.recognition_config import RecognitionConfig
from diminuendo.training.removing import Source

log = logging.getLogger(__name__)

LEFT_OUT_AT_MOST = 0.01


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
        width=config.predictor_width,
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


class HeardClips:
    """Clips without texts: what a recogniser hears in them, decoded greedily, is what they say.

    teacher: the recogniser, of the pupil's labels.
    """

    def __init__(self, cuts: CutSet, pupil: Pupil, config: RecognitionConfig, teacher: Source) -> None:
        self.pupil, self.teacher, self.left_out = pupil, teacher, ""
        longest = min(config.max_seconds, config.seconds_per_batch)
        self.cuts = cuts.filter(lambda cut: cut.duration <= longest)
        if not cuts.is_lazy:
            self.cuts = _some(self.cuts.to_eager(), len(cuts), longest)
            self.left_out = _said({f"longer than {longest:g} s": len(cuts) - len(self.cuts)})

    def texts(self, batch: Batch) -> tuple[Batch, Texts]:
        """The clips of a batch that have a frame, and the ids of the labels that were heard."""
        frames = family_of(self.pupil.model).frame_lengths(self.pupil.model, batch.lengths)
        batch, frames = _only(batch, frames > 0), frames[frames > 0]
        if not batch.cuts:
            return batch, []
        found = [best.tokens for best, *_ in hypotheses(self.teacher.model, self.teacher.extractor, batch, Decoding())]
        usable = ~too_long_for_ctc(found, frames) if "ctc" in self.pupil.task else frames > 0
        return _only(batch, usable), [text for text, is_usable in zip(found, usable.tolist(), strict=True) if is_usable]


def _some(fitting: CutSet, clips: int, longest: float) -> CutSet:
    """The clips that are not too long. UserError if there are none."""
    if not len(fitting):
        raise UserError(
            f"all {clips} clips are longer than {longest:g} s, the most that training takes whole; cut them, or give a "
            "larger max_seconds and --seconds-per-batch"
        )
    return fitting


def _said(left_out: Mapping[str, int]) -> str:
    """How many clips are left out and why, which is logged too."""
    said = ", ".join(f"{count} clips left out: {why}" for why, count in left_out.items() if count)
    if said:
        log.warning("%s", said)
    return said


def _only(batch: Batch, usable: Bool[Tensor, " batch"]) -> Batch:
    """A batch of some of its clips."""
    if usable.all():
        return batch
    cuts = tuple(cut for cut, is_usable in zip(batch.cuts, usable.tolist(), strict=True) if is_usable)
    return replace(batch, waveforms=batch.waveforms[usable], lengths=batch.lengths[usable], cuts=cuts)


def has_texts(cuts: CutSet) -> bool:
    """Whether any clip says what is said in it; of a lazy set, which would have to be read through, that is assumed."""
    return cuts.is_lazy or any(supervision.text for cut in cuts for supervision in cut.supervisions)


class LabelledClips:
    """The clips of a training that can be used, and what those of a batch say.

    What can be known before a clip is read is checked here; of lazy sets everything, batch by batch. UserError where
    texts are missing or cannot be written, or clips are too long to be used whole, or too short for CTC.
    """

    def __init__(self, cuts: CutSet, pupil: Pupil, config: RecognitionConfig) -> None:
        self.pupil, self.model, self.ctc = pupil, pupil.model, "ctc" in pupil.task
        self.fastest = max(config.speeds)
        self.cuts, self.targets = check_texts(cuts, pupil.tokens)
        self.left_out = ""
        longest = min(config.max_seconds, config.seconds_per_batch)
        if cuts.is_lazy:
            self.cuts = self.cuts.filter(lambda cut: cut.duration <= longest)
        else:
            self._leave_out(longest, len(cuts) - len(self.cuts))

    def _leave_out(self, longest: float, unwritten: int) -> None:
        """Leaves out what cannot be used. unwritten: clips that are gone already, as tokens lack what they say."""
        clips = list(self.cuts)
        fitting = list(_some(CutSet([cut for cut in clips if cut.duration <= longest]), len(clips), longest))
        short = self._too_short(fitting, self.targets) if self.ctc else set()
        if len(short) > LEFT_OUT_AT_MOST * len(fitting):
            raise UserError(
                f"{len(short)} of {len(fitting)} clips have more labels than frames, which CTC cannot align (first: "
                f"{min(short)}); give tokens of more letters each (pieces, words), or a model of more frames a second"
            )
        self.left_out = _said(
            {
                "texts that the tokens cannot write": unwritten,
                f"longer than {longest:g} s": len(clips) - len(fitting),
                "more labels than frames": len(short),
            }
        )
        self.cuts = CutSet([cut for cut in fitting if cut.id not in short])

    def _too_short(self, cuts: Sequence[Any], targets: Targets) -> set[str]:
        found = targets.of(cuts)
        samples = torch.tensor([int(cut.duration / self.fastest * SAMPLING_RATE) for cut in cuts])
        frames = family_of(self.model).frame_lengths(self.model, samples)
        long = too_long_for_ctc([found[cut.id] for cut in cuts], frames)
        return {cut.id for cut, is_long in zip(cuts, long.tolist(), strict=True) if is_long}

    def texts(self, batch: Batch) -> tuple[Batch, Texts]:
        """The clips of a batch that can be used, and the ids of their labels."""
        found = self.targets.of(batch.cuts)
        usable = torch.tensor([cut.id in found for cut in batch.cuts])
        frames = family_of(self.model).frame_lengths(self.model, batch.lengths)
        usable &= frames > 0
        if self.ctc:
            usable &= ~too_long_for_ctc([found.get(cut.id, []) for cut in batch.cuts], frames)
        batch = _only(batch, usable)
        return batch, [found[cut.id] for cut in batch.cuts]


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


def clips_to_learn(cuts: CutSet, pupil: Pupil, config: CompressConfig, teacher: Source) -> LabelledClips | HeardClips:
    """The clips with what they say, or where none has a text with what the teacher hears, if it has the same labels."""
    if has_texts(cuts) or not config.posterior_weight:
        return LabelledClips(cuts, pupil, config)
    log.info("DATA has no texts: what the teacher hears is what is learned")
    return HeardClips(cuts, pupil, config, teacher)
