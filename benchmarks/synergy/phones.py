"""Sentences as phones, by eSpeak NG: in few hours of speech most words are new, and all sounds are heard."""

from collections.abc import Iterable, Iterator
from typing import Any

from diminuendo.data.synthetic import espeak_paths, speaking_process


def as_phones(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of a manifest with the phones of an American in the place of `text`: IPA, a space between them."""
    said: dict[str, str] = {}
    with speaking_process(*espeak_paths()) as say:
        for row in rows:
            text = row["text"]
            if text not in said:
                said[text] = " ".join(say({"text": text, "voice": "en-us", "rate": 160, "pitch": 50, "seed": 0})[1])
            yield row | {"text": said[text]}
