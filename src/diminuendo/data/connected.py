"""Connected words: utterances joined from clips of single words, each of one speaker's clips.

Real voices, unseen test speakers and a small vocabulary whose order nothing predicts: what a recogniser gets right it
has heard. Silence around a word is trimmed, words are brought to one level, and gaps between them are drawn.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, Protocol, TypeVar, get_args

import numpy as np
import soundfile
from jaxtyping import Float, Int16
from lhotse.cut import Cut

from diminuendo.data.audio import BadAudio, Skipped, load_waveform
from diminuendo.data.made import is_made, making
from diminuendo.errors import UserError

SAMPLE_RATE = 16_000
VERSION = 1  # raise it when the same clips and settings give other audio: older corpora are then not reused
KIND = "corpus of connected words"

FRAME, HOP = 160, 80  # samples over which levels are taken: 10 ms every 5
# First difference, nearly: lifts fricatives, which are weak beside vowels, and drops hum, which is strong.
PREEMPHASIS = 0.97
# Of the loudest frame. Spectrograms of real words show a final f cut at -30, and at -40 room noise taken for speech.
SPEECH_DB = -35.0
SILENCE_DB = -60.0  # of full scale: the quietest of 15,000 clips has its loudest frame at -48
MARGIN = 320  # samples kept beyond the first and last frame of speech: the closure before a plosive, a fading end
FADE = 48  # samples over which a word rises and falls, 3 ms: no click, and a burst at a clip's edge survives
LEVEL = 0.05  # root mean square of a word; one speaker's clips differ by up to 25 dB

Split = Literal["train", "dev", "test"]
Audio = Int16[np.ndarray, " samples"]
T = TypeVar("T")


@dataclass(frozen=True)
class Clip:
    """One word, said by one speaker. `name` is what the manifest calls it; `text` has no white space."""

    name: str
    cut: Cut
    text: str
    speaker: str
    split: Split


@dataclass(frozen=True)
class Joining:
    """How utterances are composed.

    max_words: of an utterance. singles: the fraction of train utterances that have one word, numbers from 2 to
    `max_words` sharing the rest equally; of a single word all frames are known to be its own. max_gap: seconds;
    gaps before, between and after words are drawn from 0 to it.
    """

    max_words: int = 6
    singles: float = 0.5
    max_gap: float = 0.2

    def __post_init__(self) -> None:
        if self.max_words < 2:
            raise UserError(f"max_words must be at least 2, got {self.max_words}")
        if not 0 <= self.singles <= 1:
            raise UserError(f"singles must be a fraction from 0 to 1, got {self.singles:g}")
        if not 0 <= self.max_gap <= 10:
            raise UserError(f"max_gap must be from 0 to 10 seconds, got {self.max_gap:g}")


class Track(Protocol):
    """Passes items on while it shows how far they are."""

    def __call__(self, items: Sequence[T], name: str, unit: str) -> Iterable[T]: ...


def untracked(items: Sequence[T], name: str, unit: str) -> Sequence[T]:
    return items


@dataclass(frozen=True)
class Word:
    clip: Clip
    audio: Audio


@dataclass(frozen=True)
class Joined:
    """An utterance's audio and where in it words lie, in samples."""

    audio: Audio
    starts: list[int]
    ends: list[int]


def connect(
    directory: Path,
    clips: Sequence[Clip],
    *,
    train: int,
    joining: Joining | None = None,
    seed: int = 0,
    track: Track = untracked,
) -> Path:
    """Makes the corpus in `directory`, or finds it there from an earlier call, and returns the path of its manifest.

    `train` utterances are composed of train clips, all of which are used equally often, to within one; more utterances
    begin with the same ones. In dev and test every clip is used exactly once, and numbers of words are equally
    frequent. Order is by chance everywhere. The same arguments give the same bytes. Clips that cannot be read or are
    silent are left out and named in the log. The directory appears only when it is complete. Words are held in memory,
    some 20 kB each.

    `manifest.jsonl` has `audio_filepath` (relative; FLAC, 16 kHz, 16 bit), `duration` in seconds, `text`, `speaker`,
    `split`, `num_words`, `clips` (names, in order) and `starts` and `ends` of the words in seconds.

    Raises UserError if the directory holds anything else, or a corpus made with other arguments; if a text is not one
    word, a speaker is in two splits or a split is unknown; and if there are no train clips.
    """
    joining = joining or Joining()
    if train < 1:
        raise UserError(f"train must be 1 utterance or more, got {train}")
    if seed < 0:
        raise UserError(f"seed must be 0 or more, got {seed}")
    _check(clips)
    parameters = {"version": VERSION, "train": train, "seed": seed, **asdict(joining), "clips": _digest(clips)}
    if is_made(directory, KIND, parameters):
        return directory / "manifest.jsonl"
    with making(directory, KIND, parameters) as unfinished:
        words = read_words(clips, track)
        utterances = [
            (split, index, utterance)
            for split in get_args(Split)
            for index, utterance in enumerate(plan(words, split, train, joining, seed))
        ]
        with (unfinished / "manifest.jsonl").open("w", encoding="utf-8") as manifest:
            for split, index, utterance in track(utterances, "join words", "utterances"):
                random = _random(seed, split, 1, index)
                row = write(unfinished, f"audio/{split}/{index:06d}.flac", utterance, joining.max_gap, random)
                manifest.write(json.dumps(row, ensure_ascii=False) + "\n")
    return directory / "manifest.jsonl"


def read_words(clips: Sequence[Clip], track: Track = untracked) -> list[Word]:
    """Every clip's word, as `prepare` gives it; those that cannot be used are left out and named in the log."""
    words, skipped = [], Skipped()
    for clip in track(clips, "read words", "clips"):
        try:
            words.append(Word(clip, prepare(load_waveform(clip.cut, SAMPLE_RATE))))
        except BadAudio as bad:
            skipped.add(clip.name, bad)
    return words


def prepare(samples: Float[np.ndarray, " samples"]) -> Audio:
    """The word of a clip at 16 kHz: trimmed, at the common level, fading at both ends; 16 bit.

    Raises BadAudio if the clip is silent.
    """
    centred = samples - samples.mean()  # some recordings have an offset, which would be a step at every joint
    word = centred[spoken(centred)]
    word = word * (LEVEL / np.sqrt(np.mean(word**2)))
    word /= max(1.0, float(np.abs(word).max()))
    rise = np.sin(np.linspace(0, np.pi / 2, FADE, endpoint=False)) ** 2
    word[:FADE] *= rise
    word[-FADE:] *= rise[::-1]
    audio: Audio = np.round(word * (2**15 - 1)).astype(np.int16)
    return audio


def spoken(samples: Float[np.ndarray, " samples"]) -> slice:
    """Where in a clip its word is: from the first frame to the last that comes near the loudest one, and a margin.

    Raises BadAudio if even the loudest frame is silent.
    """
    loudest = 10 * np.log10(max(frame_power(samples).max(), 1e-20))
    if loudest < SILENCE_DB:
        raise BadAudio("silent", f"{loudest:.0f} dB of full scale at its loudest")
    power = frame_power(np.append(samples[:1], samples[1:] - PREEMPHASIS * samples[:-1]))
    speech = np.flatnonzero(power > power.max() * 10 ** (SPEECH_DB / 10))
    return slice(max(0, int(speech[0]) * HOP - MARGIN), min(len(samples), int(speech[-1]) * HOP + FRAME + MARGIN))


def frame_power(samples: Float[np.ndarray, " samples"]) -> Float[np.ndarray, " frames"]:
    """The mean square of every frame; samples after the last whole one are in none."""
    squares = np.asarray(samples, np.float64) ** 2
    power: Float[np.ndarray, " frames"] = np.lib.stride_tricks.sliding_window_view(squares, FRAME)[::HOP].mean(axis=-1)
    return power


def plan(words: Sequence[Word], split: Split, train: int, joining: Joining, seed: int) -> list[list[Word]]:
    """What is said in a split: `train` utterances, or as many as it takes to use every word of dev or test once."""
    speakers = defaultdict(list)
    for word in words:
        if word.clip.split == split:
            speakers[word.clip.speaker].append(word)
    random = _random(seed, split, 0)
    if split != "train":
        return deal(list(speakers.values()), joining.max_words, 1 / joining.max_words, random)
    if not speakers:
        raise UserError("none of the clips can be used for training; expected some whose split is train")
    utterances: list[list[Word]] = []
    while len(utterances) < train:
        utterances += deal(list(speakers.values()), joining.max_words, joining.singles, random)
    return utterances[:train]


def deal(piles: Sequence[Sequence[T]], max_words: int, singles: float, random: np.random.Generator) -> list[list[T]]:
    """Every member of every pile once, in hands of members of one pile, in an order by chance.

    A hand has one member with probability `singles`, else 2 to `max_words`; a pile's last takes what is left.
    """
    hands = []
    for pile in piles:
        order, taken = random.permutation(len(pile)), 0
        while taken < len(pile):
            size = 1 if random.random() < singles else int(random.integers(2, max_words + 1))
            hands.append([pile[member] for member in order[taken : taken + size]])
            taken += size
    return [hands[hand] for hand in random.permutation(len(hands))]


def write(
    directory: Path, path: str, words: Sequence[Word], max_gap: float, random: np.random.Generator
) -> dict[str, object]:
    """Writes an utterance to `path`, relative to `directory`, and gives its row of the manifest."""
    joined = join([word.audio for word in words], max_gap, random)
    (directory / path).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(directory / path, joined.audio, SAMPLE_RATE, subtype="PCM_16")
    clips = [word.clip for word in words]
    return {
        "audio_filepath": path,
        "duration": len(joined.audio) / SAMPLE_RATE,
        "text": " ".join(clip.text for clip in clips),
        "speaker": clips[0].speaker,
        "split": clips[0].split,
        "num_words": len(clips),
        "clips": [clip.name for clip in clips],
        "starts": [start / SAMPLE_RATE for start in joined.starts],
        "ends": [end / SAMPLE_RATE for end in joined.ends],
    }


def join(words: Sequence[Audio], max_gap: float, random: np.random.Generator) -> Joined:
    """Words, unchanged, with gaps of 0 to `max_gap` seconds before, between and after them.

    Gaps hold noise that is like the quietest frame of the words in level and spectrum: between silence every word would
    begin where zeros end, and of a telephone's recordings where there is nothing above 4 kHz.
    """
    gaps = random.integers(0, round(max_gap * SAMPLE_RATE), size=len(words) + 1, endpoint=True)
    lengths = [len(word) for word in words]
    ends = np.cumsum(gaps[:-1] + lengths).tolist()
    starts = [end - length for end, length in zip(ends, lengths, strict=True)]
    audio = noise_like(quietest_frame(words), ends[-1] + int(gaps[-1]), random)
    for start, end, word in zip(starts, ends, words, strict=True):
        audio[start:end] = word
    return Joined(audio, starts, ends)


def quietest_frame(words: Sequence[Audio]) -> Float[np.ndarray, " frame"]:
    """Of all words without their ends, which fade to nothing."""
    inner = [word[FADE:-FADE].astype(np.float64) for word in words]
    powers = [frame_power(word) for word in inner]
    quietest = min(range(len(words)), key=lambda index: powers[index].min())
    first = int(powers[quietest].argmin()) * HOP
    return inner[quietest][first : first + FRAME]


def noise_like(frame: Float[np.ndarray, " frame"], length: int, random: np.random.Generator) -> Audio:
    """Noise of the frame's root mean square and, as far as its length resolves it, spectrum."""
    # White noise through a filter has the filter's spectrum; the window keeps hum from spreading over all of it.
    taps = frame * np.hanning(FRAME)
    taps *= np.sqrt(np.mean(frame**2)) / (np.linalg.norm(taps) or 1.0)
    white = random.standard_normal(length + FRAME - 1)
    audio: Audio = np.round(np.convolve(white, taps, "valid")).astype(np.int16)
    return audio


def _random(seed: int, split: Split, *rest: int) -> np.random.Generator:
    return np.random.default_rng([seed, get_args(Split).index(split), *rest])


def _check(clips: Sequence[Clip]) -> None:
    """Raises UserError for what no corpus can be made of."""
    for clip in clips:
        if len(clip.text.split()) != 1:
            raise UserError(f"{clip.name}: expected one word without white space as its text, got {clip.text!r}")
        if clip.split not in get_args(Split):
            raise UserError(f"{clip.name}: expected train, dev or test as its split, got {clip.split!r}")
    # Sorted by speaker, one of two splits has two of them side by side.
    for one, other in pairwise(sorted({(clip.speaker, clip.split) for clip in clips})):
        if one[0] == other[0]:
            raise UserError(f"speaker {one[0]} is in {one[1]} and {other[1]}; every speaker needs one split")


def _digest(clips: Sequence[Clip]) -> str:
    known = [(clip.name, clip.cut.duration, clip.text, clip.speaker, clip.split) for clip in clips]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]
