"""The clips that a recogniser is trained with, and what they say: by their texts, or as another one hears them."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool
from lhotse import CutSet
from torch import Tensor

from diminuendo.data.batching import Batch
from diminuendo.data.tokens import (
    LEFT_OUT_AT_MOST,
    Targets,
    check_texts,
    first_of,
    load_tokens,
    text_of,
    too_long_for_ctc,
)
from diminuendo.errors import UserError
from diminuendo.evaluation.transcripts import Decoding, hypotheses
from diminuendo.families import family_of
from diminuendo.families.inputs import SAMPLING_RATE
from diminuendo.training.compress_config import CompressConfig
from diminuendo.training.loop import Texts
from diminuendo.training.recogniser import Pupil
from diminuendo.training.recognition_config import RecognitionConfig
from diminuendo.training.removing import Source

log = logging.getLogger(__name__)

TOO_SHORT, UNWRITTEN = "more labels than frames", "no text, or one that the tokens cannot write"


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
