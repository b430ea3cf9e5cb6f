"""A spoken corpus made offline: keywords and sentences said by the voices of eSpeak NG (the extra `synthetic`).

Every clip has its words and phones, its speaker and a split by speaker, so that the corpus serves distillation,
recognition and the keyword and speaker probes. Rate, pitch, level, surrounding silence and noise vary from clip
to clip.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from jaxtyping import Float, Int16

from diminuendo.data import espeak
from diminuendo.data.made import is_made, making
from diminuendo.errors import UserError

SAMPLE_RATE = 16000
KIND = "synthetic corpus"
VERSION = 1  # raise it when the same parameters give other clips: older corpora are then not reused

KEYWORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"),
    *("bird", "house", "tree", "follow", "learn"),
)

# Words in capitals are expanded further, at random.
GRAMMAR = {
    "SENTENCE": (
        "WHO DOES WHAT WHERE WHEN",
        "WHO DOES WHAT and OTHERS DO WHAT",
        "WHEN WHO DOES WHAT WHERE",
        "WHO GOES WHERE because OTHERS DO WHAT",
        "WHERE OTHERS DO WHAT WHEN",
        "please CALL WHAT and CALL WHAT",
    ),
    "WHO": ("the KIND PERSON", "my PERSON", "PERSON number NUMBER", "our KIND PERSON"),
    "OTHERS": ("NUMBER KIND ANIMALS", "the ANIMALS", "all the KIND ANIMALS"),
    "WHAT": ("the COLOUR THING", "a COLOUR THING", "NUMBER COLOUR THINGS", "every THING"),
    "PERSON": ("captain", "teacher", "doctor", "farmer", "sister", "brother", "neighbour", "painter"),
    "ANIMALS": ("birds", "horses", "dogs", "sheep", "monkeys", "fishes", "children", "rabbits"),
    "KIND": ("old", "young", "quiet", "happy", "clever", "strange", "hungry", "tall"),
    "COLOUR": ("red", "blue", "green", "yellow", "brown", "white", "purple", "golden"),
    "THING": ("boat", "house", "bottle", "window", "chair", "jacket", "garden", "picture", "tree", "shell"),
    "THINGS": ("boats", "boxes", "bottles", "windows", "chairs", "jackets", "letters", "pictures", "trees"),
    "NUMBER": ("two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "DOES": ("follows", "watches", "carries", "paints", "forgets", "chooses", "washes", "sells"),
    "DO": ("follow", "watch", "carry", "break", "enjoy", "love", "need", "find"),
    "CALL": ("take", "bring", "show", "count", "open", "clean"),
    "GOES": ("walks", "travels", "runs", "waits", "sleeps", "jumps"),
    "WHERE": ("near the river", "on the left", "behind the church", "under the bridge", "at home", "over there"),
    "WHEN": ("today", "every morning", "before lunch", "in july", "this evening", "after the game", "at night"),
}

# One accent, so that the phones of an unseen speaker are those of the training set: (variant, words a minute, pitch).
VOICES = (
    *(("f1", 160, 50), ("m1", 155, 45), ("f2", 175, 45), ("m2", 170, 55), ("f3", 165, 60)),
    *(("Andy", 180, 40), ("Annie", 150, 45), ("m3", 160, 35), ("linda", 175, 50), ("Mike", 165, 50)),
    *(("f4", 155, 40), ("quincy", 160, 55), ("belinda", 165, 40), ("m4", 185, 50), ("shelby", 170, 55)),
    *(("m7", 150, 50), ("f5", 180, 55), ("pablo", 175, 45), ("Alicia", 190, 40), ("norbert", 160, 60)),
)
# Dealt to the voices in turn, so that every split has women and men, and small corpora have every split.
SPLITS = ("train", "test", "train", "dev", "train")


@dataclass(frozen=True)
class Clip:
    """What is said, by whom, and where it goes: all that is decided before any sound is made."""

    name: str
    text: str
    voice: int
    labels: dict[str, str | int]


Say = Callable[[dict[str, str | int]], tuple[Int16[np.ndarray, " samples"], list[str]]]


def make_corpus(
    directory: Path,
    *,
    num_clips: int = 1600,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Makes the corpus in `directory`, or finds it there from an earlier call, and returns the path of its manifest.

    Five clips of eight are keywords, the others sentences; the default comes to about 50 minutes. The same
    arguments give the same bytes. The directory appears only when it is complete.

    `manifest.jsonl` has `audio_filepath` (relative; FLAC, 16 kHz, 16 bit), `duration` in seconds, `text`,
    `phones` (IPA, separated by spaces), `speaker`, `split` (by speaker) and, for keywords, `keyword` and `take`.

    `progress` is called with the clips done and the clips in all. Raises UserError if the directory holds anything
    else, or a corpus made with other arguments, and if the extra `synthetic` is not installed.
    """
    if num_clips < 1:
        raise UserError(f"num_clips must be 1 or more, got {num_clips}")
    parameters = {"version": VERSION, "num_clips": num_clips, "seed": seed}
    if is_made(directory, KIND, parameters):
        return directory / "manifest.jsonl"
    library, data = espeak_paths()
    with making(directory, KIND, parameters) as unfinished, speaking_process(library, data) as say:
        write_clips(unfinished, plan_clips(num_clips, seed), seed, say, progress)
    return directory / "manifest.jsonl"


def espeak_paths() -> tuple[str, str]:
    """Paths of the eSpeak NG library and of its data. Raises UserError if the extra is not installed."""
    try:
        import espeakng_loader
    except ModuleNotFoundError as error:
        raise UserError("the synthetic corpus needs the extra: pip install 'diminuendo[synthetic]'") from error
    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()


def plan_clips(num_clips: int, seed: int) -> list[Clip]:
    """Keywords first (every speaker says every keyword before a second take begins), then sentences."""
    num_keywords = num_clips * 5 // 8
    clips = []
    for index in range(num_keywords):
        voice, turn = index % len(VOICES), index // len(VOICES)
        keyword = KEYWORDS[(voice + turn) % len(KEYWORDS)]
        take = turn // len(KEYWORDS) + 1
        clips.append(Clip(f"{keyword}-{take}", keyword, voice, {"keyword": keyword, "take": take}))
    for index in range(num_clips - num_keywords):
        sentence = expand("SENTENCE", np.random.default_rng([seed, 0, index]))
        clips.append(Clip(f"sentence-{index:05d}", sentence, index % len(VOICES), {}))
    return clips


def expand(symbol: str, random: np.random.Generator) -> str:
    """A random phrase of the grammar for `symbol`; a word in small letters stands for itself."""
    if symbol not in GRAMMAR:
        return symbol
    choice = GRAMMAR[symbol][random.integers(len(GRAMMAR[symbol]))]
    return " ".join(expand(word, random) for word in choice.split())


def write_clips(
    directory: Path, clips: list[Clip], seed: int, say: Say, progress: Callable[[int, int], None] | None
) -> None:
    """Writes the audio and the manifest, in the order of `clips`."""
    with (directory / "manifest.jsonl").open("w", encoding="utf-8") as manifest:
        for index, clip in enumerate(clips):
            random = np.random.default_rng([seed, 1, index])
            variant, rate, pitch = VOICES[clip.voice]
            speech, phones = say(
                {
                    "text": clip.text,
                    "voice": f"en-us+{variant}",
                    "rate": round(rate * random.uniform(0.9, 1.1)),
                    "pitch": round(pitch + random.uniform(-6, 6)),
                    "seed": int(random.integers(2**31)),
                }
            )
            audio = record(speech, random)
            path = Path("audio") / variant / f"{clip.name}.flac"
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(directory / path, audio, SAMPLE_RATE, subtype="PCM_16")
            row = {
                "audio_filepath": path.as_posix(),
                "duration": len(audio) / SAMPLE_RATE,
                "text": clip.text,
                "phones": " ".join(phones),
                "speaker": variant,
                "split": SPLITS[clip.voice % len(SPLITS)],
                **clip.labels,
            }
            manifest.write(json.dumps(row, ensure_ascii=False) + "\n")
            if progress is not None:
                progress(index + 1, len(clips))


def record(
    speech: Int16[np.ndarray, " samples"], random: np.random.Generator
) -> Int16[np.ndarray, " samples_at_16_khz"]:
    """The voice as a microphone might hear it: silence around it, noise 15 to 30 dB below it, at any level."""
    clean = soxr.resample(speech.astype(np.float32) / 2**15, espeak.SAMPLE_RATE, SAMPLE_RATE)
    noise_level = np.sqrt(np.mean(clean**2)) * 10 ** (-random.uniform(15, 30) / 20)
    before, after = (int(random.uniform(0.05, 0.3) * SAMPLE_RATE) for _ in range(2))
    padded: Float[np.ndarray, " samples_at_16_khz"] = np.pad(clean, (before, after))
    noisy = padded + noise_level * random.standard_normal(len(padded), dtype=np.float32)
    peak = 10 ** (-random.uniform(1, 15) / 20)
    scaled: Int16[np.ndarray, " samples_at_16_khz"] = np.round(
        noisy * (peak * (2**15 - 1) / np.abs(noisy).max())
    ).astype(np.int16)
    return scaled


@contextmanager
def speaking_process(library: str, data: str) -> Iterator[Say]:
    """A fresh process of espeak.py, as a function from a request to its audio (22.05 kHz) and phones.

    Raises RuntimeError if the process ends early; its own message is then on standard error.
    """
    command = [sys.executable, "-I", espeak.__file__, library, data]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        to_process, from_process = process.stdin.fileno(), process.stdout

        def say(request: dict[str, str | int]) -> tuple[Int16[np.ndarray, " samples"], list[str]]:
            # A process that has ended is reported below, by the answer that is missing.
            with suppress(BrokenPipeError):
                os.write(to_process, json.dumps(request).encode() + b"\n")
            header = from_process.readline()
            if not header:
                raise RuntimeError(f"eSpeak NG ended with status {process.wait()} at {request}")
            answer = json.loads(header)
            return np.frombuffer(from_process.read(answer["bytes"]), np.int16), answer["phones"]

        yield say
