"""Which clips become connected words: commands and digits, with splits by speaker.

A folder has a manifest.jsonl whose rows have `audio_filepath`, `duration`, `speaker` and `keyword`, those of commands
`split`, too. Ours are freely licensed recordings: arabic_commands
(github.com/abdulkaderghandoura/arabic-speech-commands-dataset: 40 words, 18 speakers for training, 6 for dev, 6 for
test) and digits (github.com/Jakobovski/free-spoken-digit-dataset: 10 words, 6 speakers).
"""

from pathlib import Path
from typing import Any

from diminuendo.data.connected import Clip, Split
from diminuendo.data.manifest import ALL, read_cuts, split_of
from diminuendo.errors import UserError

COMMANDS, DIGITS = "arabic_commands", "digits"

# Commands are named in English. Ten are numbers, which English digits are, too, and sound otherwise: so these are
# written as they are said.
NUMBERS = {
    "zero": "sifr",
    "one": "wahid",
    "two": "ithnan",
    "three": "thalatha",
    "four": "arbaa",
    "five": "khamsa",
    "six": "sitta",
    "seven": "sabaa",
    "eight": "thamania",
    "nine": "tisaa",
}
# Digits come with a split by take; these speakers, last in the alphabet, are held out instead. Dev has commands alone:
# a fourth voice of digits is worth more in training.
HELD_OUT: dict[str, Split] = {"theo": "test", "yweweler": "test"}


def words_of(speech: Path) -> list[Clip]:
    """The clips of both folders in `speech`, with all that is needed to connect them.

    Raises UserError if one of the folders is not there, or a clip has no keyword, speaker or split.
    """
    return [_clip(corpus, cut) for corpus in (COMMANDS, DIGITS) for cut in read_cuts(_manifest(speech, corpus), ALL)]


def _manifest(speech: Path, corpus: str) -> Path:
    path = speech / corpus / "manifest.jsonl"
    if not path.is_file():
        raise UserError(f"SPEECH {speech}: expected folders {COMMANDS} and {DIGITS} with a manifest.jsonl each")
    return path


def _clip(corpus: str, cut: Any) -> Clip:
    name, said = f"{corpus}/{cut.id}", cut.supervisions[0]
    keyword, speaker = (said.custom or {}).get("keyword"), said.speaker
    split = HELD_OUT.get(speaker, "train") if corpus == DIGITS else split_of(cut)
    if not keyword or not speaker or not split:
        raise UserError(f"{name}: expected a keyword, a speaker and a split, got {keyword!r}, {speaker!r}, {split!r}")
    text = keyword if corpus == DIGITS else NUMBERS.get(keyword, keyword)
    # Speakers of one name in both folders would be two people. "zoom in" is one word: nobody says "zoom" alone, and a
    # hyphen would be a space to a recogniser.
    return Clip(name, cut, "".join(text.split()), f"{corpus}/{speaker}", split)  # type: ignore[arg-type]
