"""The one form in which texts are compared, learned from and written."""

import unicodedata

import regex

# Accents that stand alone are typed for apostrophes, and NFKC would make of them a space with a mark.
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2019\u2018\u201b\u02bc\u00b4`", "'"))
# They change how letters join or look, or nothing at all; a space in their place would cut words in two.
_INVISIBLE = regex.compile(
    r"[\u00ad\u034f\u061c\u200c-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufe00-\ufe0f\ufeff]"
)
_NO_WORD = regex.compile(r"[^\p{L}\p{N}\p{Mn}\p{Mc}']|(?<![\p{L}\p{N}\p{Mn}\p{Mc}])[\p{Mn}\p{Mc}]+")
_OUTER_APOSTROPHE = regex.compile(r"(?<![\p{L}\p{N}\p{Mn}\p{Mc}])'|'(?![\p{L}\p{N}\p{Mn}\p{Mc}])")


def normalise(text: str) -> str:
    """Words of lower-case letters, marks, digits and apostrophes, one space between them; the same for any script.

    - NFKC, so that what looks alike is alike (ligatures, full width, presentation forms), and lower case;
    - typographic apostrophes, and accents typed for them, become '; an apostrophe stays inside a word only;
    - invisible characters go without a trace (soft hyphens, joiners, marks of direction, variation selectors);
    - all else that is not a letter, a digit, or a mark upon one, becomes a space; spaces are collapsed.

    Numbers stay as digits, vowel signs and accents stay, and what is normalised already stays as it is.
    """
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text.translate(_APOSTROPHES))).lower()
    # A letter and its mark may be one in lower case only (T with two dots); NFKC may bring forth an apostrophe.
    text = unicodedata.normalize("NFKC", text).translate(_APOSTROPHES)
    return " ".join(_OUTER_APOSTROPHE.sub(" ", _NO_WORD.sub(" ", text)).split())
