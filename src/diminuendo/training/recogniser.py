"""The recogniser that is trained: MODEL itself, or its encoder with a new head, and the texts that it learns."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from lhotse import CutSet
from torch import Tensor

from diminuendo.data.batching import Batch
from diminuendo.data.tokens import (
    LEFT_OUT_AT_MOST,
    Targets,
    Tokens,
    check_texts,
    first_of,
    load_tokens,
    make_tokenizer,
    text_of,
    too_long_for_ctc,
)
from diminuendo.errors import UserError
from diminuendo.evaluation.transcripts import Decoding, hypotheses
from diminuendo.families import Model, family_of, stream_width
from diminuendo.families.family import Task
from diminuendo.families.inputs import SAMPLING_RATE
from diminuendo.families.recogniser import with_head
from diminuendo.families.transducer import is_transducer
from diminuendo.training.compress_config import CompressConfig
from diminuendo.training.loop import Texts
from diminuendo.training.recognition_config import RecognitionConfig
from diminuendo.training.removing import Source

log = logging.getLogger(__name__)

WIDEST = 640  # a new transducer, unless it is told
TOO_SHORT, UNWRITTEN = "more labels than frames", "no text, or one that the tokens cannot write"


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


class HeardClips:
    """Clips without texts: what a recogniser hears in them, decoded greedily, is what they say.

    teacher: the recogniser, of the pupil's labels.
    """

    def __init__(self, cuts: CutSet, pupil: Pupil, config: RecognitionConfig, teacher: Source) -> None:
        self.pupil, self.teacher, self.unused = pupil, teacher, Unused()
        self.cuts = self.unused.without_long(cuts, min(config.max_seconds, config.seconds_per_batch))

    @property
    def left_out(self) -> str:
        return self.unused.summary()

    def texts(self, batch: Batch) -> tuple[Batch, Texts]:
        """The clips of a batch that have a frame, and the ids of the labels that were heard."""
        frames = family_of(self.pupil.model).frame_lengths(self.pupil.model, batch.lengths)
        batch, frames = _only(batch, frames > 0), frames[frames > 0]
        if not batch.cuts:
            return batch, []
        found = [best.tokens for best, *_ in hypotheses(self.teacher.model, self.teacher.extractor, batch, Decoding())]
        usable = ~too_long_for_ctc(found, frames) if "ctc" in self.pupil.task else frames > 0
        self.unused.add(TOO_SHORT, _ids(batch, ~usable))
        return _only(batch, usable), [text for text, is_usable in zip(found, usable.tolist(), strict=True) if is_usable]


class Unused:
    """The clips of a training that are left out, by why; of a set that is not in memory, those that were met."""

    def __init__(self) -> None:
        self.clips: dict[str, set[str]] = {}

    def without_long(self, cuts: CutSet, longest: float) -> CutSet:
        """The clips that are not too long. UserError if a set in memory has none."""
        why = f"longer than {longest:g} s"

        def fits(cut: Any) -> bool:
            if cut.duration > longest:
                self.add(why, [cut.id])
            return bool(cut.duration <= longest)

        if cuts.is_lazy:
            return cuts.filter(fits)
        self.add(why, [cut.id for cut in cuts if cut.duration > longest])
        fitting = CutSet([cut for cut in cuts if cut.duration <= longest])
        if not len(fitting):
            raise UserError(
                f"all {len(cuts)} clips are longer than {longest:g} s, the most that training takes whole; cut them, "
                "or give a larger max_seconds and --seconds-per-batch"
            )
        return fitting

    def add(self, why: str, clips: Iterable[str]) -> None:
        """However often a clip is met it counts once; a warning says how many at every doubling."""
        there = self.clips.setdefault(why, set())
        before = len(there)
        there.update(clips)
        if len(there).bit_length() > before.bit_length():
            log.warning("%d clips left out: %s", len(there), why)

    def summary(self) -> str:
        return ", ".join(f"{len(clips)} clips left out: {why}" for why, clips in self.clips.items() if clips)


def _ids(batch: Batch, chosen: Bool[Tensor, " batch"]) -> list[str]:
    return [str(cut.id) for cut, is_chosen in zip(batch.cuts, chosen.tolist(), strict=True) if is_chosen]


def _only(batch: Batch, usable: Bool[Tensor, " batch"]) -> Batch:
    """A batch of some of its clips."""
    if usable.all():
        return batch
    cuts = tuple(cut for cut, is_usable in zip(batch.cuts, usable.tolist(), strict=True) if is_usable)
    return replace(batch, waveforms=batch.waveforms[usable], lengths=batch.lengths[usable], cuts=cuts)


def has_texts(cuts: CutSet) -> bool:
    """Whether any clip says what is said in it; of a lazy set, any of its first ones."""
    return any(text_of(cut) is not None for cut in (first_of(cuts) if cuts.is_lazy else cuts))


class LabelledClips:
    """The clips of a training that can be used, and what those of a batch say.

    What can be known before a clip is read is checked here; of lazy sets everything, batch by batch. UserError where
    texts are missing or cannot be written, or clips are too long to be used whole, or too short for CTC.
    """

    def __init__(self, cuts: CutSet, pupil: Pupil, config: RecognitionConfig) -> None:
        self.pupil, self.model, self.ctc = pupil, pupil.model, "ctc" in pupil.task
        self.fastest = max(config.speeds)
        self.cuts, self.targets = check_texts(cuts, pupil.tokens)
        self.unused = Unused()
        if not cuts.is_lazy:
            written = {cut.id for cut in self.cuts}
            self.unused.add(UNWRITTEN, [cut.id for cut in cuts if cut.id not in written])
        self.cuts = self.unused.without_long(self.cuts, min(config.max_seconds, config.seconds_per_batch))
        if self.ctc and not cuts.is_lazy:
            self._leave_out_short()

    @property
    def left_out(self) -> str:
        return self.unused.summary()

    def _leave_out_short(self) -> None:
        clips = list(self.cuts)
        short = self._too_short(clips, self.targets)
        if len(short) > LEFT_OUT_AT_MOST * len(clips):
            played = f" at speed {self.fastest:g}" if self.fastest > 1 else ""
            raise UserError(
                f"{len(short)} of {len(clips)} clips have more labels than frames{played}, which CTC cannot align "
                f"(first: {min(short)}); give tokens of more letters each (pieces, words), or a model of more frames a "
                "second"
            )
        self.unused.add(TOO_SHORT, short)
        self.cuts = CutSet([cut for cut in clips if cut.id not in short])

    def _too_short(self, cuts: Sequence[Any], targets: Targets) -> set[str]:
        found = targets.of(cuts)
        samples = torch.tensor([int(cut.duration / self.fastest * SAMPLING_RATE) for cut in cuts])
        frames = family_of(self.model).frame_lengths(self.model, samples)
        long = too_long_for_ctc([found[cut.id] for cut in cuts], frames)
        return {cut.id for cut, is_long in zip(cuts, long.tolist(), strict=True) if is_long}

    def texts(self, batch: Batch) -> tuple[Batch, Texts]:
        """The clips of a batch that can be used, and the ids of their labels."""
        found = self.targets.of(batch.cuts)
        written = torch.tensor([cut.id in found for cut in batch.cuts])
        frames = family_of(self.model).frame_lengths(self.model, batch.lengths)
        long_enough = frames > 0
        if self.ctc:
            long_enough &= ~too_long_for_ctc([found.get(cut.id, []) for cut in batch.cuts], frames)
        self.unused.add(UNWRITTEN, _ids(batch, ~written))
        self.unused.add(TOO_SHORT, _ids(batch, ~long_enough))
        batch = _only(batch, written & long_enough)
        return batch, [found[cut.id] for cut in batch.cuts]


class PartlyLabelledClips:
    """Clips of which some have texts, and of the others what a recogniser hears in them."""

    def __init__(self, labelled: LabelledClips, heard: HeardClips) -> None:
        self.labelled, self.heard, self.pupil = labelled, heard, labelled.pupil
        self.cuts = CutSet([*labelled.cuts, *heard.cuts])

    @property
    def left_out(self) -> str:
        return ", ".join(filter(None, (self.labelled.left_out, self.heard.left_out)))

    def texts(self, batch: Batch) -> tuple[Batch, Texts]:
        """The clips of a batch that can be used, those with a text first, and the ids of their labels."""
        written = torch.tensor([text_of(cut) is not None for cut in batch.cuts])
        parts = [
            clips.texts(_only(batch, chosen))
            for clips, chosen in ((self.labelled, written), (self.heard, ~written))
            if chosen.any()
        ]
        whole = replace(
            batch,
            waveforms=torch.cat([part.waveforms for part, _ in parts]),
            lengths=torch.cat([part.lengths for part, _ in parts]),
            cuts=tuple(cut for part, _ in parts for cut in part.cuts),
        )
        return whole, [text for _, texts in parts for text in texts]


Clips = LabelledClips | HeardClips | PartlyLabelledClips


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


def clips_to_learn(cuts: CutSet, pupil: Pupil, config: CompressConfig, source: Source, teacher: Source | None) -> Clips:
    """The clips with what they say; what the others say is what the teacher hears, if it has the pupil's labels.

    source: the pupil's. teacher: None for the pupil itself as it came. Of a lazy set all have texts, or none.
    """
    silent = [] if cuts.is_lazy else [cut for cut in cuts if text_of(cut) is None]
    if (has_texts(cuts) and not silent) or not _hears_labels(pupil, teacher):
        return LabelledClips(cuts, pupil, config)
    hearer = teacher or source
    if not has_texts(cuts):
        log.info("DATA has no texts: what the teacher hears is what is learned")
        return HeardClips(cuts, pupil, config, hearer)
    log.info("%d of %d clips have no text: of these what the teacher hears is what is learned", len(silent), len(cuts))
    labelled = LabelledClips(CutSet([cut for cut in cuts if text_of(cut) is not None]), pupil, config)
    return PartlyLabelledClips(labelled, HeardClips(CutSet(silent), pupil, config, hearer))


def _hears_labels(pupil: Pupil, teacher: Source | None) -> bool:
    """Whether a teacher writes the pupil's labels."""
    if teacher is None:
        return not pupil.new
    if not family_of(teacher.model).is_recogniser(teacher.model):
        return False
    return load_tokens(str(teacher.name), teacher.model.config).labels == pupil.tokens.labels
