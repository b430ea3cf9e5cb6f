"""Who speaks, on clips of the same speakers that training did not hear: the split is by take, within each speaker."""

import logging
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from diminuendo.errors import UserError
from diminuendo.evaluation.probes.probe import LabelledClip, Split, field_of, speaker_of

log = logging.getLogger(__name__)

MIN_CLIPS = 5


def speaker_clips(cuts: Iterable[Any], seed: int) -> list[LabelledClip]:
    """Label clips by speaker: of a speaker's takes the first 60 % are train, the next 20 % dev, the last 20 % test.

    Clips of every split of the manifest together. A speaker with fewer than five distinct takes, or with a clip that
    names none, is split by the order of the clips instead. Speakers with fewer than five clips, and clips without a
    speaker, are left out, counted in the log. Nothing is drawn, so the seed is unused. The interval resamples clips.

    Raises:
        UserError: fewer than two speakers are left.
    """
    of_speaker: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    nameless = 0
    for cut in cuts:
        speaker = speaker_of(cut)
        if speaker is None:
            nameless += 1
        else:
            of_speaker[speaker].append((cut.id, field_of(cut, "take")))
    kept = {speaker: found for speaker, found in of_speaker.items() if len(found) >= MIN_CLIPS}
    if nameless or len(kept) < len(of_speaker):
        log.warning(
            "speaker probe: left out %d speakers with fewer than %d clips and %d clips without a speaker",
            len(of_speaker) - len(kept),
            MIN_CLIPS,
            nameless,
        )
    if len(kept) < 2:
        raise UserError(
            f"the speaker probe needs at least 2 speakers with {MIN_CLIPS} clips each, got {len(kept)} of "
            f"{len(of_speaker)} speakers, and {nameless} clips without one; add `speaker` to DATA, or more clips"
        )
    return [
        LabelledClip(id_, speaker, split, speaker)
        for speaker, found in kept.items()
        for (id_, _), split in zip(found, _splits([take for _, take in found]), strict=True)
    ]


def _splits(takes: list[Any]) -> list[Split]:
    if None in takes or len(set(takes)) < MIN_CLIPS:
        takes = list(range(len(takes)))
    # Text is ordered as numbers are: "10" comes after "9".
    order = {take: i for i, take in enumerate(sorted(set(takes), key=lambda take: (len(str(take)), str(take))))}
    train_end, dev_end = round(0.6 * len(order)), round(0.8 * len(order))

    def side(place: int) -> Split:
        return "train" if place < train_end else "dev" if place < dev_end else "test"

    return [side(order[take]) for take in takes]
