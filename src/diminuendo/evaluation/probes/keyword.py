"""Which keyword is said; by the manifest's own split, so by speakers that training never heard if it is by speaker."""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast, get_args

from diminuendo.data.manifest import split_of
from diminuendo.errors import UserError
from diminuendo.evaluation.probes.probe import LabelledClip, Split, field_of, held_out_fifth, speaker_of

log = logging.getLogger(__name__)


def keyword_clips(cuts: Iterable[Any], seed: int) -> list[LabelledClip]:
    """Label clips by `keyword`, split them by `split`; the interval resamples speakers.

    Without a dev split, a seeded fifth of the train speakers is dev (of the train clips, where fewer than two
    speakers are known). Clips without a keyword or with another split are left out, counted in the log.

    Raises:
        UserError: no clip has a keyword, or there is no train or no test split.
    """
    clips, left_out = [], Counter[str]()
    for cut in cuts:
        keyword, split = field_of(cut, "keyword"), split_of(cut)
        if keyword is None:
            left_out["no keyword"] += 1
        elif split not in get_args(Split):
            left_out[f"split {split!r}"] += 1
        else:
            clips.append(LabelledClip(cut.id, str(keyword), cast(Split, split), speaker_of(cut) or cut.id))
    for reason, count in left_out.items():
        log.warning("keyword probe: %d clips left out: %s", count, reason)
    heard = {clip.speaker for clip in clips if clip.split != "test"}
    if known := {clip.speaker for clip in clips if clip.split == "test"} & heard:
        log.warning("keyword probe: %d speakers of the test split are in train or dev, too: not unseen", len(known))
    return _with_dev(clips, left_out, seed)


def _with_dev(clips: list[LabelledClip], left_out: Counter[str], seed: int) -> list[LabelledClip]:
    splits = Counter(clip.split for clip in clips)
    if not splits["train"] or not splits["test"]:
        reasons = "".join(f", {count} left out for {reason}" for reason, count in left_out.items())
        raise UserError(
            "the keyword probe needs rows with a keyword in the splits train and test, got "
            f"{splits['train']} in train and {splits['test']} in test{reasons}; add `keyword` and `split` to DATA"
        )
    if splits["dev"]:
        return clips
    train = [clip for clip in clips if clip.split == "train"]
    by_speaker = len({clip.speaker for clip in train}) > 1

    def name(clip: LabelledClip) -> str:
        return clip.speaker if by_speaker else clip.id

    log.info("keyword probe: no dev split; a fifth of the train %s is dev", "speakers" if by_speaker else "clips")
    held_out = held_out_fifth([name(clip) for clip in train], seed)
    return [replace(clip, split="dev") if clip.split == "train" and name(clip) in held_out else clip for clip in clips]
