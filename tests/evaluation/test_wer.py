"""Word error rates by hand, and intervals that hold what they promise."""

import logging

import numpy as np
import pytest
import torch
from kaldialign import bootstrap_wer_ci

from diminuendo.errors import UserError
from diminuendo.evaluation.bootstrap import interval, resampled, summed
from diminuendo.evaluation.wer import word_error_rate

REFERENCES = ["The cat sat.", "on a mat", "all day", "and", "night"]
HYPOTHESES = ["the cat", "on the mat now", "All day!", "and", "night"]


def marred(generator, words, rates):
    """Clips of so many words each, and hypotheses in which a fraction of them is another word."""
    references = [" ".join(["yes"] * count) for count in words]
    hypotheses = [
        " ".join(np.where(generator.random(count) < rate, "no", "yes"))
        for count, rate in zip(words, np.broadcast_to(rates, len(words)), strict=True)
    ]
    return references, hypotheses


def test_errors_are_counted_over_all_clips_of_normalised_texts():
    found = word_error_rate(REFERENCES, HYPOTHESES)
    assert (found.substitutions, found.insertions, found.deletions, found.words, found.clips) == (1, 1, 1, 10, 5)
    assert found.wer == 0.3
    # " sat" is gone: 4; "a" became "the": 3; " now" came: 4. Expected were 11, 8, 7, 3 and 5 characters.
    assert found.cer == 11 / 34
    assert (found.speakers, found.speaker_low, found.speaker_high, found.second) == (None, None, None, None)


def test_intervals_of_characters_are_those_of_words_of_one_character():
    references, hypotheses = marred(np.random.default_rng(0), [7, 3, 5, 4, 6, 2, 8, 5], 0.3)
    letters = [[text.replace("yes", "y").replace("no", "n") for text in texts] for texts in (references, hypotheses)]
    joined = [[text.replace(" ", "") for text in texts] for texts in letters]
    speakers = list("abcdefgh")
    spaced, alone = word_error_rate(*letters, speakers), word_error_rate(*joined, speakers)
    assert (alone.cer, alone.cer_low, alone.cer_high) == (spaced.wer, spaced.wer_low, spaced.wer_high)
    assert (alone.speaker_cer_low, alone.speaker_cer_high) == (spaced.speaker_low, spaced.speaker_high)
    assert spaced.cer_low is not None
    assert spaced.cer_low < spaced.cer < spaced.cer_high
    assert (alone.wer_low, spaced.wer_low) != (spaced.cer_low, alone.cer_high)


def test_a_missing_space_is_an_error_of_one_character_and_two_words():
    found = word_error_rate(["ab cd"], ["abcd"])
    assert (found.wer, found.cer) == (1.0, 1 / 5)


def test_everything_wrong_and_more_is_above_one():
    found = word_error_rate(["yes"], ["no no no"])
    assert (found.wer, found.substitutions, found.insertions) == (3.0, 1, 2)


def test_a_clip_without_words_adds_its_insertions_alone():
    assert word_error_rate(["one two", "..."], ["one two", "three"]).wer == 0.5


def test_no_reference_word_is_refused():
    for references in ([], ["", "?!"]):
        with pytest.raises(UserError, match=f"{len(references)} clips without a reference word"):
            word_error_rate(references, references)


@pytest.mark.parametrize("more", [{"speakers": ["a"]}, {"others": ["one"]}, {"others": ["one", "two", "three"]}])
def test_sequences_of_several_lengths_are_refused(more):
    with pytest.raises(ValueError, match=r"1 speakers for 2 references|argument 2 is (shorter|longer)"):
        word_error_rate(["one", "two"], ["one", "two"], **more)


def test_the_interval_over_clips_is_that_of_kaldialign():
    references, hypotheses = marred(np.random.default_rng(0), np.arange(200) % 15 + 3, 0.2)
    found = word_error_rate(references, hypotheses, seed=1)
    theirs = bootstrap_wer_ci([text.split() for text in references], [text.split() for text in hypotheses])
    assert (found.wer_low, found.wer_high) == pytest.approx((theirs["ci95min"], theirs["ci95max"]), abs=1e-3)
    assert word_error_rate(references, hypotheses, seed=1) == found
    assert word_error_rate(references, hypotheses, seed=2).wer_low != found.wer_low


def test_one_speaker_for_every_clip_gives_the_interval_over_clips():
    found = word_error_rate(REFERENCES, HYPOTHESES, speakers=list("abcde"))
    assert (found.speakers, found.speaker_low, found.speaker_high) == (5, found.wer_low, found.wer_high)


def test_the_interval_over_speakers_who_differ_is_that_of_their_own_rates():
    rates = np.repeat(np.linspace(0, 0.5, 25), 20)
    references, hypotheses = marred(np.random.default_rng(0), [10] * 500, rates)
    speakers = [str(index // 20) for index in range(500)]
    found = word_error_rate(references, hypotheses, speakers)
    own = [text.split().count("no") / 10 for text in hypotheses]
    half = 2.064 * np.std(np.reshape(own, (25, 20)).mean(axis=1), ddof=1) / 25**0.5  # Student, 24 degrees of freedom
    assert (found.speaker_low, found.speaker_high) == pytest.approx(
        (found.wer - half, found.wer + half), abs=0.1 * half
    )
    assert found.speaker_high - found.speaker_low > 2 * (found.wer_high - found.wer_low)


def test_fewer_than_five_clips_or_speakers_have_no_interval_and_speakers_say_so(caplog):
    with caplog.at_level(logging.WARNING):
        found = word_error_rate(REFERENCES, HYPOTHESES, list("abcda"), HYPOTHESES)
    assert "4 speakers are too few" in caplog.text
    assert (found.speakers, found.speaker_low, found.speaker_high) == (4, None, None)
    assert (found.second.speaker_low, found.second.speaker_high, found.second.speaker_probability) == (None,) * 3
    assert None not in (found.wer_low, found.second.low, found.second.probability)
    few = word_error_rate(REFERENCES[:4], HYPOTHESES[:4])
    assert (few.wer, few.wer_low, few.wer_high) == (3 / 9, None, None)


def test_resamples_without_a_word_say_nothing():
    found = word_error_rate(["one two", "", "", "", ""], ["one", "", "", "", ""])
    assert (found.wer_low, found.wer_high) == (0.5, 0.5)


@pytest.mark.parametrize("clips", [8, 60])
def test_the_interval_holds_the_truth_in_95_of_100_cases(clips):
    generator = np.random.default_rng(0)
    held = []
    for case in range(300):
        words = generator.integers(5, 25, clips)
        errors = generator.binomial(words, generator.beta(2, 8, clips))  # clips differ: their mean rate is 0.2
        sums = torch.tensor(np.stack([errors, words], axis=1), dtype=torch.float64)
        errors_of, words_of = resampled(sums, case, resamples=400).unbind(dim=1)
        low, high = interval(errors_of / words_of, clips)
        held.append(low <= 0.2 <= high)
    assert 0.91 <= np.mean(held) <= 0.98


def test_differences_of_systems_that_err_together_are_surer_than_their_rates_say():
    generator = np.random.default_rng(0)
    hard = generator.beta(1, 4, 200)  # clips that are hard for one system are hard for the other
    references, first = marred(generator, [20] * 200, hard)
    _, second = marred(generator, [20] * 200, 0.8 * hard)
    speakers = [str(index // 10) for index in range(200)]
    found = word_error_rate(references, first, speakers, second)
    alone = word_error_rate(references, second)
    paired = found.second.high - found.second.low
    unpaired = ((found.wer_high - found.wer_low) ** 2 + (alone.wer_high - alone.wer_low) ** 2) ** 0.5
    assert paired < 0.6 * unpaired
    assert found.second.wer == alone.wer
    assert found.second.difference == pytest.approx(alone.wer - found.wer, abs=1e-12)
    assert found.second.low < found.second.difference < found.second.high < 0
    assert found.second.speaker_low < found.second.difference < found.second.speaker_high
    assert (found.second.probability, found.second.speaker_probability) == pytest.approx((1, 1), abs=0.01)
    back = word_error_rate(references, second, speakers, first).second
    assert (back.difference, back.low, back.high) == pytest.approx(
        (-found.second.difference, -found.second.high, -found.second.low), abs=1e-12
    )
    assert back.probability == pytest.approx(1 - found.second.probability, abs=1e-12)


def test_a_system_is_not_better_than_itself():
    second = word_error_rate(REFERENCES, HYPOTHESES, others=HYPOTHESES).second
    assert (second.difference, second.low, second.high, second.probability) == (0.0, 0.0, 0.0, 0.5)


def test_the_second_is_better_as_often_as_its_one_right_clip_is_drawn_more_often_than_its_one_wrong():
    references = ["one", "two", "three", "four", "five"]
    second = word_error_rate(references, ["x", *references[1:]], others=[references[0], "x", *references[2:]]).second
    assert second.difference == 0
    assert second.probability == pytest.approx(0.5, abs=0.02)
    # Of one clip that is better: drawn at least once in 1 - (4 / 5)^5, and half of the rest counts.
    better = word_error_rate(references, ["x", *references[1:]], others=references).second
    assert better.probability == pytest.approx(1 - 0.5 * 0.8**5, abs=0.01)


def test_sums_are_of_groups_in_the_order_in_which_they_come():
    values = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    assert summed(values, ["b", "a", "b"]).tolist() == [[5.0, 50.0], [2.0, 20.0]]


def test_hypotheses_are_normalised_as_references_are():
    found = word_error_rate(["Don\u2019t!"], ["DON'T"], others=["don't"])
    assert (found.wer, found.second.wer) == (0.0, 0.0)
