"""How much of what a recogniser writes is wrong, and whether another writes less that is."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any

from lhotse import CutSet

from diminuendo.data.audio import Skipped
from diminuendo.data.batching import Batch
from diminuendo.errors import UserError
from diminuendo.evaluation.transcripts import (
    Decoding,
    Recogniser,
    Transcript,
    batches_of,
    number_of_batches,
    seconds_per_frame,
    transcripts,
)
from diminuendo.evaluation.wer import word_error_rate
from diminuendo.families import Model, family_of

Progress = Callable[[Iterable[Batch], int], Iterable[Batch]]
"""Shows how far batches are, given how many there are."""


def recognition_errors(
    recogniser: Recogniser,
    cuts: CutSet,
    decoding: Decoding,
    *,
    other: Recogniser | None = None,
    seed: int = 0,
    progress: Progress = lambda batches, _: batches,
) -> tuple[dict[str, Any], list[Transcript]]:
    """What `word_error_rate` says of all clips, with their `seconds`, how many `clips` and `left_out`; and transcripts.

    left_out: why clips are in none of the figures: they could not be read.
    other: a second recogniser that hears the same clips; then there is `second` too. seed: of the resamples.
    Raises UserError for clips without text, which there is nothing to compare with.
    """
    texts = {cut.id: _text(cut) for cut in cuts}
    without = [clip for clip, text in texts.items() if text is None]
    if without:
        raise UserError(
            f"{len(without)} of {len(texts)} clips have no text to compare with (first: {without[0]}); give DATA with "
            "a text in every row"
        )
    speakers = {cut.id: cut.supervisions[0].speaker for cut in cuts}
    skipped = Skipped()
    heard = list(_heard(recogniser, cuts, decoding, progress, skipped))
    heard.sort(key=lambda transcript: transcript.id)
    against = None
    if other is not None:
        ahead = _as_far(decoding.lookahead, recogniser.model, other.model)
        found = {one.id: one.text for one in _heard(other, cuts, replace(decoding, lookahead=ahead), progress)}
        against = [found[transcript.id] for transcript in heard]
    known = [speakers[transcript.id] for transcript in heard]
    result = word_error_rate(
        [texts[transcript.id] or "" for transcript in heard],
        [transcript.text for transcript in heard],
        speakers=None if None in known else [str(speaker) for speaker in known],
        others=against,
        seed=seed,
    )
    lengths = {cut.id: cut.duration for cut in cuts}
    seconds = sum(lengths[transcript.id] for transcript in heard)
    facts = {"clips": len(heard), "seconds": round(seconds, 3), "left_out": skipped.summary()}
    return {**asdict(result), **facts}, heard


def _as_far(lookahead: int | None, model: Model, other: Model) -> int | None:
    """A model's lookahead in frames of another, which may be of another length; None if that hears whole clips."""
    if lookahead is None or not family_of(other).streams:
        return None
    return round(lookahead * seconds_per_frame(model) / seconds_per_frame(other))


def _heard(
    recogniser: Recogniser, cuts: CutSet, decoding: Decoding, progress: Progress, skipped: Skipped | None = None
) -> Iterator[Transcript]:
    batches = batches_of(recogniser, cuts, skipped=skipped)
    return transcripts(recogniser, progress(batches, number_of_batches(recogniser, cuts)), decoding)


def _text(cut: Any) -> str | None:
    """An empty text is one, too: what is heard beside it is wrong."""
    texts = [supervision.text for supervision in cut.supervisions if supervision.text is not None]
    return str(texts[0]) if len(texts) == 1 else None
