"""How much of what a recogniser writes is wrong, and whether another writes less that is."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from lhotse import CutSet

from diminuendo.data.batching import Batch
from diminuendo.errors import UserError
from diminuendo.evaluation.transcripts import Decoding, Recogniser, Transcript, batches_of, transcripts
from diminuendo.evaluation.wer import word_error_rate

log = logging.getLogger(__name__)

Progress = Callable[[Iterable[Batch]], Iterable[Batch]]


def recognition_errors(
    recogniser: Recogniser,
    cuts: CutSet,
    decoding: Decoding,
    *,
    other: Recogniser | None = None,
    seed: int = 0,
    progress: Progress = iter,
) -> tuple[dict[str, Any], list[Transcript]]:
    """What `word_error_rate` says of all clips, with their `seconds` and how many `clips`; and the transcripts.

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
    heard = list(transcripts(recogniser, progress(batches_of(recogniser, cuts)), decoding))
    if len(heard) < len(texts):
        log.warning("%d of %d clips could not be read and are left out", len(texts) - len(heard), len(texts))
    heard.sort(key=lambda transcript: transcript.id)
    against = None
    if other is not None:
        found = {one.id: one.text for one in transcripts(other, progress(batches_of(other, cuts)), decoding)}
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
    return {**asdict(result), "clips": len(heard), "seconds": round(seconds, 3)}, heard


def _text(cut: Any) -> str | None:
    texts = [supervision.text for supervision in cut.supervisions if supervision.text]
    return str(texts[0]) if len(texts) == 1 else None
