"""One form for texts of any script."""

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diminuendo.data.text import normalise


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Hello,\tWORLD!\n", "hello world"),
        ("Don\u2019t", "don't"),
        ("don\u00b4t stop`n go", "don't stop'n go"),
        ("'Rock 'n' roll' of the boys'", "rock n roll of the boys"),
        ("a''b", "a b"),
        ("3.14 is 1,000 times 50 %", "3 14 is 1 000 times 50"),
        ("\ufb01ne \uff21\uff22\uff23 CO\u2082", "fine abc co2"),
        ("nai\u0308ve Stra\u00dfe \u1e9e", "na\u00efve stra\u00dfe \u00df"),
        ("co\u00adoperate \u2764\ufe0f 1\ufe0f\u20e3", "cooperate 1"),
        ("under_score state-of-the-art", "under score state of the art"),
        ("\u2581piece <blank> a|b", "piece blank a b"),
        (
            "\u0627\u0644\u0633\u0651\u064e\u0644\u0627\u0645\u060c \u0661\u0662\u061f",
            "\u0627\u0644\u0633\u064e\u0651\u0644\u0627\u0645 \u0661\u0662",
        ),
        ("\u0939\u093f\u0928\u094d\u0926\u0940\u0964", "\u0939\u093f\u0928\u094d\u0926\u0940"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u062e\u0648\u0627\u0647\u0645"),
        ("\u65e5\u672c\u8a9e\u3002\u30c6\u30b9\u30c8", "\u65e5\u672c\u8a9e \u30c6\u30b9\u30c8"),
        ("...!?", ""),
        ("", ""),
    ],
)
def test_a_text_is_words_of_lower_case_letters_marks_digits_and_inner_apostrophes(text, expected):
    assert normalise(text) == expected


# What changes in several steps: lone accents, n with its apostrophe, a dotted capital, a ligature, dots on a capital.
@settings(deadline=None, derandomize=True)
@given(st.text())
@example("\u00b4a\u00b4\u0301'\u0301b")
@example("\u0149 \u0130\u0323x \ufdfa")
@example("a\u2764\u0301'b")
@example("T\u0308")
def test_what_is_normalised_stays_as_it_is(text):
    once = normalise(text)
    assert normalise(once) == once


@settings(deadline=None, derandomize=True)
@given(st.text(st.sampled_from("aB\u00c9\u0301\u0651\u0628'\u2019 -_.1\u00ad\u200d\u2764"), max_size=12))
def test_nothing_but_words_is_left(text):
    for word in normalise(text).split(" ") if normalise(text) else []:
        assert {unicodedata.category(letter)[0] for letter in word} <= {"L", "M", "N", "P"}
        assert unicodedata.category(word[0])[0] in "LN"
        assert not word.endswith("'")
        assert "''" not in word
        assert word == word.lower()
