"""CTC beside sums over all paths there are, and beside plain references."""

import math
from collections import defaultdict
from itertools import groupby, product

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from diminuendo.errors import UserError
from diminuendo.tasks.ctc import ctc_loss, flat_alignment, frames_needed, greedy, prefix_beam_search
from diminuendo.tasks.hypotheses import Hypothesis, log_add

Labelling = tuple[int, ...]


def random_log_probs(clips: int, frames: int, vocabulary: int, sharpness: float = 2.0) -> Tensor:
    return (sharpness * torch.randn(clips, frames, vocabulary)).log_softmax(-1)


def collapsed(path: Labelling, blank: int) -> tuple[Labelling, Labelling]:
    """Tokens, and the frames at which their runs start."""
    runs = [(label, [frame for frame, _ in run]) for label, run in groupby(enumerate(path), key=lambda at: at[1])]
    kept = [(label, frames[0]) for label, frames in runs if label != blank]
    return tuple(label for label, _ in kept), tuple(frame for _, frame in kept)


def every_labelling(log_probs: Float[Tensor, "frames vocabulary"], blank: int) -> list[Hypothesis]:
    """Most probable first, summed over all paths; frames are those of the best path."""
    totals: dict[Labelling, float] = defaultdict(lambda: -math.inf)
    best: dict[Labelling, tuple[float, Labelling]] = {}
    for path in product(range(log_probs.shape[1]), repeat=len(log_probs)):
        tokens, frames = collapsed(path, blank)
        score = float(sum(log_probs[frame, label].double() for frame, label in enumerate(path)))
        totals[tokens] = log_add(totals[tokens], score)
        best[tokens] = max(best.get(tokens, (-math.inf, ())), (score, frames))
    found = [Hypothesis(tokens, best[tokens][1], total) for tokens, total in totals.items()]
    return sorted(found, key=lambda hypothesis: -hypothesis.score)


def plain_prefix_search(log_probs: Float[Tensor, "frames vocabulary"], blank: int, beam: int) -> dict[Labelling, float]:
    """As it is published: every prefix goes on with every label of the vocabulary."""
    prefixes: dict[Labelling, tuple[float, float]] = {(): (0.0, -math.inf)}
    for row in log_probs.double().tolist():
        ended: dict[Labelling, float] = defaultdict(lambda: -math.inf)
        spoken: dict[Labelling, float] = defaultdict(lambda: -math.inf)
        for prefix, (in_blank, in_token) in prefixes.items():
            ended[prefix] = log_add(ended[prefix], log_add(in_blank, in_token) + row[blank])
            for label in set(range(len(row))) - {blank}:
                longer = (*prefix, label)
                if prefix and prefix[-1] == label:
                    spoken[prefix] = log_add(spoken[prefix], in_token + row[label])
                    spoken[longer] = log_add(spoken[longer], in_blank + row[label])
                else:
                    spoken[longer] = log_add(spoken[longer], log_add(in_blank, in_token) + row[label])
        totals = {prefix: log_add(ended[prefix], spoken[prefix]) for prefix in [*ended, *spoken]}
        kept = sorted(totals, key=totals.__getitem__, reverse=True)[:beam]
        prefixes = {prefix: (ended[prefix], spoken[prefix]) for prefix in kept}
    return {prefix: log_add(*ends) for prefix, ends in prefixes.items()}


def assert_equal(found: list[Hypothesis], expected: list[Hypothesis]) -> None:
    assert [(one.tokens, one.frames) for one in found] == [(one.tokens, one.frames) for one in expected]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-5)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_greedy_decoding_of_chunks_goes_on_with_the_symbols_before_them(size: int) -> None:
    log_probs = random_log_probs(3, 30, 3)
    expected = greedy(log_probs, torch.tensor([30] * 3), 2)
    found, last = [Hypothesis((), (), 0.0)] * 3, None
    for start in range(0, 30, size):
        chunk = log_probs[:, start : start + size]
        for clip, new in enumerate(greedy(chunk, torch.tensor([size] * 3), 2, last)):
            before, frames = found[clip], tuple(start + frame for frame in new.frames)
            found[clip] = Hypothesis(before.tokens + new.tokens, before.frames + frames, before.score + new.score)
        last = chunk[:, -1].argmax(-1)
    assert_equal(found, expected)


def test_greedy_decoding_collapses_repeats_before_it_leaves_blanks_out():
    path = [0, 3, 3, 0, 3, 1, 1, 2, 0, 0]
    log_probs = torch.full((1, 10, 4), 0.1).log()
    log_probs[0, range(10), path] = math.log(0.7)
    found = greedy(log_probs, torch.tensor([10]), blank=0)
    assert_equal(found, [Hypothesis((3, 3, 1, 2), (1, 4, 5, 7), 10 * math.log(0.7))])


@pytest.mark.parametrize("blank", [0, 2, 4])
def test_greedy_decoding_of_a_batch_is_the_best_path_over_each_clips_own_frames(blank):
    log_probs, lengths = random_log_probs(4, 30, 5), [30, 17, 1, 0]
    expected = []
    for clip, length in zip(log_probs, lengths, strict=True):
        path = tuple(clip[:length].argmax(-1).tolist())
        expected.append(Hypothesis(*collapsed(path, blank), float(clip[:length].max(-1).values.sum())))
    assert_equal(greedy(log_probs, torch.tensor(lengths), blank), expected)


@pytest.mark.parametrize("blank", [0, 2])
def test_a_wide_beam_gives_every_labelling_the_sum_over_its_alignments_and_the_frames_of_the_best(blank):
    log_probs, lengths = random_log_probs(4, 6, 3, sharpness=1.0), [6, 4, 1, 0]
    found = prefix_beam_search(log_probs, torch.tensor(lengths), blank, beam=1_000, n_best=1_000)
    for clip, (hypotheses, length) in enumerate(zip(found, lengths, strict=True)):
        assert_equal(hypotheses, every_labelling(log_probs[clip, :length], blank))


@pytest.mark.parametrize(("beam", "sharpness"), [(1, 2.0), (2, 0.5), (3, 1.0), (8, 0.5), (8, 3.0)])
def test_leaving_improbable_labels_out_changes_nothing_of_the_beam(beam, sharpness):
    log_probs = random_log_probs(3, 25, 30, sharpness)
    found = prefix_beam_search(log_probs, torch.tensor([25, 25, 25]), 0, beam, n_best=beam)
    for clip, hypotheses in enumerate(found):
        expected = plain_prefix_search(log_probs[clip], 0, beam)
        assert {one.tokens: pytest.approx(one.score) for one in hypotheses} == expected


def test_n_best_are_the_first_of_the_beam():
    log_probs, lengths = random_log_probs(2, 20, 6), torch.tensor([20, 12])
    whole = prefix_beam_search(log_probs, lengths, 0, beam=6, n_best=6)
    assert prefix_beam_search(log_probs, lengths, 0, beam=6, n_best=2) == [clip[:2] for clip in whole]
    assert all(len({one.tokens for one in clip}) == 6 for clip in whole)
    assert all(clip == sorted(clip, key=lambda one: -one.score) for clip in whole)


def test_the_loss_is_minus_the_log_probability_that_a_wide_beam_finds_its_mean_over_clips():
    logits = 5 + torch.randn(2, 6, 3)
    lengths = torch.tensor([6, 5])
    targets = [(1, 1, 2), (2,)]
    found = prefix_beam_search(logits.log_softmax(-1), lengths, 0, beam=1_000, n_best=1_000)
    scores = [next(one.score for one in clip if one.tokens == t) for clip, t in zip(found, targets, strict=True)]
    padded, counts = torch.tensor([[1, 1, 2], [2, 0, 0]]), torch.tensor([3, 1])
    assert ctc_loss(logits, lengths, padded, counts, 0).item() == pytest.approx(-sum(scores) / 2, abs=1e-5)


def test_the_softmax_of_the_loss_is_in_32_bits():
    logits = (4 * torch.randn(1, 40, 50)).bfloat16()
    arguments = torch.tensor([40]), torch.tensor([[1, 2, 3]]), torch.tensor([3]), 0
    assert torch.equal(ctc_loss(logits, *arguments), ctc_loss(logits.float(), *arguments))


@pytest.mark.parametrize(
    ("targets", "frames"), [((), 0), ((4,), 1), ((1, 2, 3), 3), ((1, 1), 3), ((1, 1, 1, 2), 6), ((2, 1, 2), 3)]
)
def test_so_many_frames_are_needed_and_no_fewer(targets, frames):
    assert frames_needed(targets) == frames
    for given in (frames, frames - 1):
        if given > 0:
            logits, padded = torch.zeros(1, given, 5), torch.tensor([targets], dtype=torch.long)
            loss = ctc_loss(logits, torch.tensor([given]), padded, torch.tensor([len(targets)]), 0)
            assert bool(loss.isfinite()) == (given == frames)


@pytest.mark.parametrize(("beam", "n_best"), [(4, 5), (0, 0), (4, 0)])
def test_a_beam_that_cannot_hold_the_n_best_is_the_users_error(beam, n_best):
    with pytest.raises(UserError, match=f"a beam of {beam} cannot give the {n_best} best"):
        prefix_beam_search(random_log_probs(1, 3, 3), torch.tensor([3]), 0, beam, n_best)


def test_adding_nothing_to_a_probability_leaves_it():
    assert log_add(-math.inf, -2.0) == log_add(-2.0, -math.inf) == -2.0
    assert log_add(-math.inf, -math.inf) == -math.inf
    assert log_add(math.log(0.25), math.log(0.5)) == pytest.approx(math.log(0.75))


def test_a_flat_alignment_gives_every_label_its_share_of_a_clip_and_blanks_where_it_begins() -> None:
    targets = torch.tensor([[1, 2, 2], [3, 0, 0], [0, 0, 0]])  # 0 is the blank, and padding
    found = flat_alignment(targets, torch.tensor([3, 1, 0]), torch.tensor([18, 12, 4]), 0)
    assert found[0].tolist() == [0, 1, 1, 1, 1, 1, 0, 2, 2, 2, 2, 2, 0, 2, 2, 2, 2, 2]
    assert found[1].tolist() == [0, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3] + [-100] * 6
    assert found[2].tolist() == [0] * 4 + [-100] * 14
    spelled = greedy(torch.nn.functional.one_hot(found.clamp(min=0), 4).double().log(), torch.tensor([18, 12, 4]), 0)
    assert [hypothesis.tokens for hypothesis in spelled] == [(1, 2, 2), (3,), ()]
