"""From a cut to samples: decoded, mixed to mono, resampled; what cannot be used is counted and named."""

import io
import logging
import os
from collections.abc import Iterable, Mapping
from threading import Event
from typing import Any, Literal

import numpy as np
import soundfile
import soxr
from jaxtyping import Float
from lhotse.audio.backend import LibsndfileBackend, get_current_audio_backend, set_current_audio_backend
from lhotse.cut import Cut, MonoCut, MultiCut

log = logging.getLogger(__name__)

Reason = Literal["missing", "broken", "empty", "silent", "too short", "non-finite"]
NAMED_AT_MOST = 20
ROUNDED_SECONDS = 0.1  # by which a manifest and a file may differ and still mean the same
UNKNOWN_FRAMES = 2**62  # and more is what libsndfile says of a length that a FLAC header leaves open
OPEN_LENGTH = "its header does not say how long it is; encode it again, not into a pipe"


class BadAudio(Exception):  # noqa: N818 - an outcome that is counted, not a failure of the run
    """A clip that cannot be used, and why."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason} ({detail})")
        self.reason: Reason = reason


def load_waveform(
    cut: Cut,
    sampling_rate: int = 16_000,
    min_seconds: float = 0.1,
    max_seconds: float | None = None,
    generator: np.random.Generator | None = None,
    speed: float = 1.0,
) -> Float[np.ndarray, "samples"]:
    """The samples of a clip: float32, mono, within [-1, 1], at `sampling_rate`.

    Channels are averaged (those that the cut names, where its recording declares more than one). Audio louder than
    full scale, as lossy codecs and float files may hold, is scaled down to it. With `max_seconds`, a longer clip is
    cropped to that length at a place that `generator` draws, and no more of a file is decoded. Of a file that is longer
    than its manifest states, the beginning is read, as NeMo does; a rounded length means all of it. `speed`: of playing
    it, which also moves its pitch; lengths are those before.

    Raises:
        BadAudio: the clip is missing, broken, empty, silent, shorter than `min_seconds`, or holds NaN or infinity.
    """
    samples, rate = _read(cut, max_seconds, generator)
    if samples.shape[0] == 0:
        raise BadAudio("empty", "no samples")
    if not np.isfinite(samples).all():
        raise BadAudio("non-finite", "it holds NaN or infinity")
    mono: np.ndarray = samples.mean(axis=1, dtype=np.float32)
    if mono.min() == mono.max():
        raise BadAudio("silent", f"all samples are {mono[0]:g}")
    if len(mono) < min_seconds * rate:
        raise BadAudio("too short", f"{len(mono) / rate:.3f} s, expected at least {min_seconds:g} s")
    if rate * speed != sampling_rate:
        mono = np.asarray(soxr.resample(mono, rate * speed, sampling_rate), dtype=np.float32)
    if max_seconds is not None:
        mono = mono[: int(max_seconds / speed * sampling_rate)]
    mono /= max(1.0, float(np.abs(mono).max()))
    return mono


def crop(
    samples: Float[np.ndarray, "samples"], longest: int, generator: np.random.Generator
) -> Float[np.ndarray, "kept"]:
    """At most `longest` samples, from a place that `generator` draws (only if there are more)."""
    start = _window(len(samples), longest, generator)
    return samples[start : start + longest]


def _window(available: int, longest: int, generator: np.random.Generator | None) -> int:
    if available <= longest or generator is None:
        return 0
    return int(generator.integers(available - longest + 1))


def _read(
    cut: Cut, max_seconds: float | None, generator: np.random.Generator | None
) -> tuple[Float[np.ndarray, "frames channels"], int]:
    recording = getattr(cut, "recording", None)
    direct = (
        isinstance(cut, MonoCut | MultiCut)
        and recording is not None
        and not recording.transforms
        and len(recording.sources) == 1
        and recording.sources[0].type in ("file", "memory")
    )
    if direct:
        return _read_source(cut, max_seconds, generator)
    samples, rate = _read_by_lhotse(cut)
    longest = len(samples) if max_seconds is None else int(max_seconds * rate)
    start = _window(len(samples), longest, generator)
    return samples[start : start + longest], rate


def _read_source(
    cut: Cut, max_seconds: float | None, generator: np.random.Generator | None
) -> tuple[Float[np.ndarray, "frames channels"], int]:
    """One file, or the bytes of one, by soundfile: lhotse would choose decoders and insist on the stated length."""
    source = cut.recording.sources[0]
    in_memory = source.type == "memory"
    if not in_memory and not os.path.exists(source.source):
        raise BadAudio("missing", source.source)
    try:
        if (len(source.source) if in_memory else os.path.getsize(source.source)) == 0:
            raise BadAudio("empty", "a file of 0 bytes")
        with soundfile.SoundFile(io.BytesIO(source.source) if in_memory else source.source) as file:
            if file.frames >= UNKNOWN_FRAMES:
                raise BadAudio("broken", OPEN_LENGTH)
            rate, first, frames = file.samplerate, *_frames_of(cut, file)
            if max_seconds is not None:
                longest = int(max_seconds * rate)
                first += _window(frames, longest, generator)
                frames = min(frames, longest)
            file.seek(first)
            samples = file.read(frames, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:  # a raw file, a name that is not UTF-8
        raise BadAudio("broken", str(error)) from error
    if len(source.channels) > 1:
        wanted = cut.channel if isinstance(cut.channel, list) else [cut.channel]
        columns = [column for column, channel in enumerate(source.channels) if channel in wanted]
        if not columns or columns[-1] >= samples.shape[1]:
            raise BadAudio("broken", f"{samples.shape[1]} channels, expected channel {cut.channel}")
        samples = samples[:, columns]
    return samples, rate


def _frames_of(cut: Cut, file: Any) -> tuple[int, int]:
    """First frame and number of frames of the cut, within what the file has."""
    recording, rate = cut.recording, file.samplerate
    if cut.start == 0 and cut.duration >= recording.duration - 1e-3:
        beyond = file.frames / rate - recording.duration
        if file.frames and abs(beyond) > ROUNDED_SECONDS:
            _tell_of_lengths(cut.id, file.frames / rate, cut.duration)
        return 0, round(cut.duration * rate) if beyond > ROUNDED_SECONDS else file.frames
    first = min(round(cut.start * rate), file.frames)
    return first, min(round(cut.duration * rate), file.frames - first)


_told_of_lengths = Event()


def _tell_of_lengths(clip: str, found: float, stated: float) -> None:
    """Once in a warning: batches are made by what manifests state, and wrong lengths make bad ones."""
    level = logging.DEBUG if _told_of_lengths.is_set() else logging.WARNING
    _told_of_lengths.set()
    log.log(level, "%s: %.2f s of audio, %.2f s in the manifest (said of the first such clip)", clip, found, stated)


def _read_by_lhotse(cut: Cut) -> tuple[Float[np.ndarray, "frames channels"], int]:
    """Mixed, transformed or remote cuts; files still go through soundfile alone."""
    previous = get_current_audio_backend()
    set_current_audio_backend(LibsndfileBackend())
    try:
        samples = cut.load_audio()
    except Exception as error:  # whatever a foreign loader raises is about this clip
        raise BadAudio("broken", f"{type(error).__name__}: {error}") from error
    finally:
        set_current_audio_backend(previous)
    if samples is None:
        raise BadAudio("missing", "the cut has no recording")
    return np.atleast_2d(samples).T.astype(np.float32), cut.sampling_rate


class Skipped:
    """The clips that were left out, by reason. The first are named in warnings; afterwards they are only counted.

    `named=False` for a look ahead, whose clips will be met, and named, again.
    """

    def __init__(self, *, named: bool = True) -> None:
        self.named = named
        self.reasons: dict[str, str] = {}

    def add(self, clip: str, bad: BadAudio) -> None:
        """Count a clip, once however often it is met, and name it while few have been."""
        if clip in self.reasons:
            return
        self.reasons[clip] = bad.reason
        if not self.named:
            return
        if len(self.reasons) <= NAMED_AT_MOST:
            log.warning("skipped %s: %s", clip, bad)
        elif len(self.reasons) == NAMED_AT_MOST + 1:
            log.warning("more than %d clips are skipped: from here on they are only counted", NAMED_AT_MOST)

    def summary(self) -> str:
        """One line: how many, by reason, with the first of each."""
        count = len(self.reasons)
        if count == 0:
            return "no clip was skipped"
        return f"skipped {count} clip{'s' if count > 1 else ''}: {by_reason(self.reasons.items())}"

    def state_dict(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return {"reasons": dict(self.reasons)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the counts of a checkpoint; its clips are not named again."""
        self.reasons = dict(state["reasons"])


def by_reason(clips: Iterable[tuple[str, str]]) -> str:
    """Clips and their reasons as `12 missing (first: a.wav), 1 silent (first: b.wav)`, the most frequent first."""
    names: dict[str, list[str]] = {}
    for clip, reason in clips:
        names.setdefault(reason, []).append(clip)
    ordered = sorted(names.items(), key=lambda item: -len(item[1]))
    return ", ".join(f"{len(clips)} {reason} (first: {clips[0]})" for reason, clips in ordered)
