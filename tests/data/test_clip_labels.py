"""Texts of clips as labels: what cannot be written is dropped, counted and named."""

import logging

import pytest
import torch
from lhotse import CutSet, MonoCut, SupervisionSegment
from lhotse.testing.dummies import dummy_recording

from diminuendo.data.tokens import LOOKED_AT, Tokens, check_texts, make_tokenizer, too_long_for_ctc
from diminuendo.errors import UserError
from diminuendo.training.labelled import has_texts

TEXTS = ["The cat sat, all on the mat.", "A cat can't see the hats;", "the cattle sees 12 balls"]


def ours(kind="characters"):
    return Tokens.of(make_tokenizer(kind, TEXTS, None))


def clips(texts, lazy=False):
    """A clip 0, 1, ... for each text; None: a clip that nobody transcribed."""
    cuts = []
    for index, text in enumerate(texts):
        said = SupervisionSegment(f"s{index}", "r", 0.0, 1.0, text=text)
        cuts.append(MonoCut(str(index), 0.0, 1.0, 0, recording=dummy_recording(index), supervisions=[said]))
    return CutSet(Once(cuts)) if lazy else CutSet(cuts)


class Once:
    """What CutSet takes for lazy; fails where it is read through and not only looked at."""

    is_lazy = True

    def __init__(self, cuts):
        self.cuts = cuts

    def __iter__(self):
        yield from self.cuts[:LOOKED_AT]
        if len(self.cuts) > LOOKED_AT:
            raise AssertionError("a lazy set was read")


def test_clips_whose_texts_cannot_be_written_are_dropped_counted_and_named(caplog):
    texts = ["the cat"] * 198 + ["the fox", "Fuzzy cat"]
    tokens = ours()
    with caplog.at_level(logging.WARNING):
        usable, targets = check_texts(clips(texts), tokens)
    assert [cut.id for cut in usable] == [str(index) for index in range(198)]
    assert "2 of 200 clips hold what the tokens lack: 'f' (2), " in caplog.text
    assert {unit for unit in "xuzy" if f"{unit!r} (1)" in caplog.text} == set("xuzy")
    assert targets.of(list(usable)[3:5]) == {"3": tokens.encode("the cat"), "4": tokens.encode("the cat")}


def test_more_than_one_clip_of_a_hundred_is_refused():
    check_texts(clips(["the cat"] * 99 + ["fox"]), ours())
    with pytest.raises(UserError, match=r"1 of 99 clips hold what the tokens lack.*more than 1%"):
        check_texts(clips(["the cat"] * 98 + ["fox"]), ours())


def test_at_most_ten_are_named_most_frequent_first():
    texts = ["jkp jk j", *"nqruvwxyz"]
    with pytest.raises(UserError, match=r"lack: .*, \.\.\., and that") as refused:
        check_texts(clips(texts), ours("words"))
    assert str(refused.value).count("(1)") == 10
    with pytest.raises(UserError, match=r"lack: 'z' \(3\), 'y' \(2\), 'x' \(1\), and that"):
        check_texts(clips(["x", "y", "y", *3 * ["z"]]), ours("words"))


@pytest.mark.parametrize("lazy", [False, True], ids=["in memory", "lazy"])
def test_clips_without_a_text_are_refused_with_their_number(lazy):
    with pytest.raises(UserError, match=r"3 of 5 clips have no text.*first: 1"):
        check_texts(clips(["the cat", None, "", "  ", "..."], lazy), ours())


@pytest.mark.parametrize("size", [4, 2 * LOOKED_AT])
def test_a_lazy_set_without_texts_is_refused_when_it_is_looked_at(size):
    with pytest.raises(UserError, match=f"{min(size, LOOKED_AT)} of {min(size, LOOKED_AT)} clips have no text"):
        check_texts(clips([None] * size, lazy=True), ours())
    foreign = clips(["fox"] * size, lazy=True)
    with pytest.raises(UserError, match="hold what the tokens lack: 'f' "):
        check_texts(foreign, ours())


@pytest.mark.parametrize("lazy", [False, True], ids=["in memory", "lazy"])
def test_whether_there_are_texts_is_seen_without_reading_a_lazy_set(lazy):
    assert not has_texts(clips([None, ""] * LOOKED_AT, lazy))
    assert has_texts(clips([None, "the cat"] * LOOKED_AT, lazy))


def test_one_clip_of_a_hundred_may_have_no_text(caplog):
    texts = ["the cat"] * 99
    with caplog.at_level(logging.WARNING):
        usable, _ = check_texts(clips([*texts, ""]), ours())
    assert len(usable) == 99
    assert "1 of 100 clips have no text, or several supervisions (first: 99): these clips are left out" in caplog.text
    with pytest.raises(UserError, match=r"1 of 101 clips have no text.*; the texts of 1 of 101 clips hold .*than 1%"):
        check_texts(clips([*texts, "", "fox"]), ours())


def test_several_supervisions_are_no_text():
    (cut,) = clips(["the cat"])
    cut.supervisions = cut.supervisions * 2
    with pytest.raises(UserError, match="1 of 1 clips have no text, or several supervisions"):
        check_texts(CutSet([cut]), ours())


def test_a_lazy_set_is_not_read_and_its_clips_are_dropped_batch_by_batch(caplog):
    cuts = clips(["the cat"] * (LOOKED_AT + 1), lazy=True)
    usable, targets = check_texts(cuts, ours())
    assert usable is cuts
    batch = list(clips(["the cat", "fox", "a mat", "..."]))
    for _ in range(5):
        assert targets.of(batch) == {"0": ours().encode("the cat"), "2": ours().encode("a mat"), "3": []}
    assert [record.args[0].partition(" clips")[0] for record in caplog.records] == [
        f"the texts of {count} of {4 * count}" for count in (1, 2, 4)
    ]


def test_a_lazy_set_of_foreign_texts_is_refused_after_ten_clips():
    targets = check_texts(clips([], lazy=True), ours())[1]
    for index in range(10):
        assert targets.of(clips(["Жжж"])) == {}, index
    with pytest.raises(UserError, match="11 of 11 clips"):
        targets.of(clips(["Жжж"]))


def test_a_lazy_set_may_lose_one_clip_of_a_hundred_however_many_come():
    targets = check_texts(clips([], lazy=True), ours())[1]
    batch = clips(["fox"] + ["the cat"] * 99)
    for _ in range(20):
        assert len(targets.of(batch)) == 99
    with pytest.raises(UserError, match="21 of 2001 clips"):
        targets.of(clips(["fox"]))


def test_ctc_needs_a_frame_for_each_label_and_one_between_equal_ones():
    targets = [[], [1], [1, 2, 3], [1, 1, 2, 2, 2], [1, 2, 1]]
    needed = torch.tensor([0, 1, 3, 8, 3])
    assert too_long_for_ctc(targets, needed).tolist() == [False] * 5
    assert too_long_for_ctc(targets, needed - 1).tolist() == [True] * 5
    losses = [
        torch.nn.functional.ctc_loss(
            torch.zeros(frames, 1, 4).log_softmax(-1), torch.tensor([target]), [frames], [len(target)], reduction="sum"
        ).isfinite()
        for target, least in zip(targets[1:], needed[1:].tolist(), strict=True)
        for frames in (least, least - 1)
        if frames > 0
    ]
    assert losses == [True, True, False, True, False, True, False]
