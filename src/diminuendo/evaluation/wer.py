"""Word error rates, how sure they are, and whether a second system is better on the same clips."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from kaldialign import edit_distance
from torch import Tensor

from diminuendo.data.text import normalise
from diminuendo.errors import UserError
from diminuendo.evaluation.bootstrap import FEWEST, interval, resampled, summed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """A second system on the same clips: `wer` is its, `difference` what it has more than the first (negative: better).

    low, high: 95 % interval of the difference. probability: that the second is better, as the fraction of resamples in
    which it has fewer errors; equal ones count half. Each for other clips of these speakers, and, with `speaker_`, for
    other speakers; None as in WordErrorRate.
    """

    wer: float
    difference: float
    low: float | None
    high: float | None
    probability: float | None
    speaker_low: float | None
    speaker_high: float | None
    speaker_probability: float | None


@dataclass(frozen=True)
class WordErrorRate:
    """Errors of all clips divided by the words of all references, both normalised.

    wer: (substitutions + insertions + deletions) / words; may exceed 1. cer: the same of characters, of which the
    spaces between words are some, as jiwer counts.

    wer_low, wer_high: 95 % interval for other clips of these speakers, clips being drawn (Bisani and Ney, ICASSP 2004).
    speaker_low, speaker_high: for other speakers, who are drawn with all of their clips: the clips of one are
    well or badly recognised together, so this one is what a claim needs, and usually the wider one. Those of `cer` are
    found likewise. None where there are fewer than five clips or speakers, or no speakers are named.
    """

    wer: float
    cer: float
    substitutions: int
    insertions: int
    deletions: int
    words: int
    clips: int
    wer_low: float | None
    wer_high: float | None
    speakers: int | None
    speaker_low: float | None
    speaker_high: float | None
    cer_low: float | None
    cer_high: float | None
    speaker_cer_low: float | None
    speaker_cer_high: float | None
    second: Comparison | None


def word_error_rate(
    references: Sequence[str],
    hypotheses: Sequence[str],
    speakers: Sequence[str] | None = None,
    others: Sequence[str] | None = None,
    seed: int = 0,
) -> WordErrorRate:
    """Of one hypothesis for each reference; texts are normalised first.

    speakers: who speaks, for each clip. others: the hypotheses of a second system; differences are paired, as both
    heard the same clips. seed: of the resamples. ValueError if the sequences are not of one length; UserError if there
    is no reference word.
    """
    if speakers is not None and len(speakers) != len(references):
        raise ValueError(f"{len(speakers)} speakers for {len(references)} references")
    expected = [normalise(text) for text in references]
    given = [normalise(text) for text in hypotheses]
    words = _errors([text.split() for text in expected], [text.split() for text in given])
    letters = _errors([list(text) for text in expected], [list(text) for text in given])
    total = {key: sum(clip[key] for clip in words) for key in words[0]} if words else {"ref_len": 0}
    if total["ref_len"] == 0:
        raise UserError(f"{len(references)} clips without a reference word have no word error rate; check their texts")
    compared = words
    if others is not None:
        compared = _errors([text.split() for text in expected], [normalise(text).split() for text in others])
    sums, letter_sums = _sums(words, compared), _sums(letters, letters)
    by_clip, letters_by_clip = _spread(sums, seed), _spread(letter_sums, seed)
    by_speaker, letters_by_speaker, voices = _Spread(), _Spread(), None
    if speakers is not None:
        voices = len(set(speakers))
        by_speaker, letters_by_speaker = (_spread(summed(each, speakers), seed) for each in (sums, letter_sums))
        if voices < FEWEST:
            log.warning("%d speakers are too few for an interval over speakers, which takes %d", voices, FEWEST)
    return WordErrorRate(
        wer=total["total"] / total["ref_len"],
        cer=sum(clip["total"] for clip in letters) / sum(clip["ref_len"] for clip in letters),
        substitutions=total["sub"],
        insertions=total["ins"],
        deletions=total["del"],
        words=total["ref_len"],
        clips=len(words),
        wer_low=by_clip.low,
        wer_high=by_clip.high,
        speakers=voices,
        speaker_low=by_speaker.low,
        speaker_high=by_speaker.high,
        cer_low=letters_by_clip.low,
        cer_high=letters_by_clip.high,
        speaker_cer_low=letters_by_speaker.low,
        speaker_cer_high=letters_by_speaker.high,
        second=None if others is None else _comparison(sums, by_clip, by_speaker),
    )


def _comparison(sums: Float[Tensor, "clips 3"], by_clip: "_Spread", by_speaker: "_Spread") -> Comparison:
    first, second, words = sums.sum(dim=0).tolist()
    return Comparison(
        wer=second / words,
        difference=(second - first) / words,
        low=by_clip.difference_low,
        high=by_clip.difference_high,
        probability=by_clip.probability,
        speaker_low=by_speaker.difference_low,
        speaker_high=by_speaker.difference_high,
        speaker_probability=by_speaker.probability,
    )


def _errors(references: Sequence[list[str]], hypotheses: Sequence[list[str]]) -> list[dict[str, int]]:
    """Of every pair kaldialign's counts: `sub`, `ins`, `del`, their `total`, and the symbols expected, `ref_len`."""
    return [
        {key: count for key, count in edit_distance(a, b).items() if key != "err_rate"}
        for a, b in zip(references, hypotheses, strict=True)
    ]


def _sums(first: Sequence[dict[str, int]], second: Sequence[dict[str, int]]) -> Float[Tensor, "clips 3"]:
    """Of every clip the errors of two systems, and the symbols expected."""
    rows = [(one["total"], other["total"], one["ref_len"]) for one, other in zip(first, second, strict=True)]
    return torch.tensor(rows, dtype=torch.float64)


@dataclass(frozen=True)
class _Spread:
    """What resampling says of clips or of speakers; nothing, where there are too few."""

    low: float | None = None
    high: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    probability: float | None = None


def _spread(sums: Float[Tensor, "units 3"], seed: int) -> _Spread:
    """Of the errors of two systems and the words, by clip or by speaker."""
    units = len(sums)
    if units < FEWEST:
        return _Spread()
    first, second, words = resampled(sums, seed).unbind(dim=1)
    spoken = words > 0  # a resample of clips without words has no rate
    rates, difference = (first / words)[spoken], ((second - first) / words)[spoken]
    better = (difference < 0).double() + 0.5 * (difference == 0).double()
    return _Spread(*interval(rates, units), *interval(difference, units), float(better.mean()))
