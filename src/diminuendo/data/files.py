"""Cuts over files and parts of files. No audio is decoded; headers are read where nothing else gives a duration."""

import gzip
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import soundfile
from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment
from lhotse.cut import Cut

from diminuendo.data.audio import OPEN_LENGTH, UNKNOWN_FRAMES
from diminuendo.errors import UserError

# A lhotse recording must state a rate and a length. Without a header these stand in; what is wrong is found in reading.
NOMINAL_RATE = 16_000
NOMINAL_SECONDS = 1.0


def read_header(file: str | Path) -> tuple[float, int] | None:
    """Seconds and sampling rate; None if the header cannot be read: the reader of the audio will name the file."""
    try:
        info = soundfile.info(str(file))
    except (soundfile.SoundFileError, OSError, TypeError, ValueError):
        return None
    return (info.duration, info.samplerate) if 0 < info.frames < UNKNOWN_FRAMES else None


def check_files(files: Sequence[str | Path]) -> None:
    """UserError if any is not there or is no audio that can be read; a file without samples is."""
    wrong = [(file, why) for file in files if (why := _why_unreadable(Path(file)))]
    if wrong:
        (first, why), more = wrong[0], len(wrong) - 1
        others = f" (and {more} more of {len(files)} files)" if more else ""
        raise UserError(f"{first}: {why}{others}; expected audio files: WAV, FLAC, Ogg, Opus, MP3")


def _why_unreadable(file: Path) -> str | None:
    if file.is_dir():
        return "a directory"
    if not file.is_file():
        return "no such file"
    try:
        frames = soundfile.info(str(file)).frames if file.stat().st_size else 0
    except (soundfile.SoundFileError, OSError, TypeError, ValueError):
        return "no audio that can be read"
    return OPEN_LENGTH if frames >= UNKNOWN_FRAMES else None


def whole_file(id_: str, file: str | Path, seconds: float | None = None, rate: int = NOMINAL_RATE, **known: Any) -> Cut:
    """A cut over all of a file; `seconds` spares the look at the header."""
    if seconds is None:
        seconds, rate = read_header(file) or (NOMINAL_SECONDS, rate)
    return _cut(_recording(id_, file, seconds, rate), id_, 0.0, seconds, **known)


def segment(
    id_: str, file: str | Path, header: tuple[float, int] | None, start: float, seconds: float | None, **known: Any
) -> Cut:
    """A cut over a part of a file, to its end if `seconds` is None."""
    whole, rate = header or (0.0, NOMINAL_RATE)
    seconds = seconds or (whole - start if whole > start else NOMINAL_SECONDS)
    recording = _recording(id_, file, max(whole, start + seconds), rate)
    return _cut(recording, id_, start, seconds, **known)


def _recording(id_: str, file: str | Path, seconds: float, rate: int) -> Recording:
    source = AudioSource(type="file", channels=[0], source=str(file))
    return Recording(id=id_, sources=[source], sampling_rate=rate, num_samples=round(seconds * rate), duration=seconds)


def _cut(
    recording: Recording,
    id_: str,
    start: float,
    seconds: float,
    *,
    text: str | None = None,
    speaker: str | None = None,
    custom: Mapping[str, Any] | None = None,
) -> Cut:
    supervision = SupervisionSegment(
        id=id_,
        recording_id=recording.id,
        start=0.0,
        duration=seconds,
        text=text,
        speaker=speaker,
        custom=dict(custom or {}),
    )
    return MonoCut(id=id_, start=start, duration=seconds, channel=0, supervisions=[supervision], recording=recording)


def seconds_of(where: str, key: str, value: object, least: float = math.ulp(0.0)) -> float:
    """`value` as a float. UserError, naming `where` and `key`, unless it is a finite number of at least `least`."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not least <= number < math.inf:
        bound = f"at least {least:g}" if least <= 0 else "above 0"
        raise UserError(f"{where}: {key} must be a number of seconds {bound}, got {value!r}")
    return float(number)


def open_text(path: Path) -> TextIO:
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8", errors="replace")


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, stripped, with their numbers."""
    try:
        with open_text(path) as file:
            yield from ((number, line.strip()) for number, line in enumerate(file, start=1) if line.strip())
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
