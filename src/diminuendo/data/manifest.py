"""What DATA names, as lhotse cuts. No audio is decoded; headers are read where nothing else gives a duration."""

import gzip
import json
import logging
import math
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import soundfile
from lhotse import AudioSource, CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item

from diminuendo.data.audio import UNKNOWN_FRAMES
from diminuendo.errors import UserError

log = logging.getLogger(__name__)

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus"})
# A lhotse recording must state a rate and a length. Without a header these stand in; audio.py believes the file.
NOMINAL_RATE = 16_000
NOMINAL_SECONDS = 1.0
ALL = "all"
_NEMO_FIELDS = frozenset({"audio_filepath", "duration", "offset", "text", "speaker"})
_CUT_TYPES = frozenset({"MonoCut", "MultiCut", "MixedCut"})


def read_cuts(data: str | Path, split: str | None, default_split: str = "train") -> CutSet:
    """The clips of DATA, one cut each, with text, speaker and all else that is known in its supervision.

    DATA is a NeMo-style or lhotse cut manifest, or a directory that holds one as `manifest.jsonl`, a lhotse Shar or
    Kaldi directory, a LibriSpeech-layout folder, or any folder of audio. Shar stays lazy; everything else is a list of
    cuts. Audio files that are missing or broken pass: they are found when they are read.

    `split` selects the rows of that split, ALL every row; None selects those of `default_split`, or all rows if no row
    has a split.

    Raises:
        UserError: DATA does not exist, holds no clips, cannot be parsed, or has no such split.
    """
    path = Path(data)
    if not path.exists():
        raise UserError(
            f"DATA {path} does not exist; give a JSON-lines manifest, a Shar or Kaldi directory, or a folder of audio"
        )
    if (path / "manifest.jsonl").is_file():
        path = path / "manifest.jsonl"
    if path.is_dir() and (shards := _shards(path)):
        wanted = _chosen_split(path, map(_split_of_line, _lines_of(shards["cuts"])), split, default_split)
        return CutSet(SharCuts(shards, wanted))
    cuts = _distinct(_read_directory(path) if path.is_dir() else _read_manifest(path))
    wanted = _chosen_split(path, map(split_of, cuts), split, default_split)
    return CutSet([cut for cut in cuts if wanted is None or split_of(cut) == wanted])


def split_of(cut: Cut) -> str | None:
    """The split a cut belongs to, from the custom fields of the cut or of its first supervision; None without one."""
    customs = [getattr(cut, "custom", None), *(s.custom for s in cut.supervisions[:1])]
    return next((str(custom["split"]) for custom in customs if custom and custom.get("split")), None)


def total_seconds(cuts: CutSet) -> float | None:
    """The sum of the durations that the manifest states; None for a lazy set, which would have to be read through."""
    return None if cuts.is_lazy else float(sum(cut.duration for cut in cuts))


class SharCuts:
    """The cuts of one split of a Shar directory: read from its shards again at every iteration, never held."""

    def __init__(self, shards: Mapping[str, Sequence[Path]], split: str | None) -> None:
        self.shards, self.split = shards, split

    def __iter__(self) -> Iterator[Cut]:
        return self.in_order(None)

    def in_order(self, seed: int | None) -> Iterator[Cut]:
        """The same cuts with the shards in the order that `seed` draws; as they lie on disk if it is None."""
        cuts = CutSet.from_shar(
            fields=self.shards, shuffle_shards=seed is not None, seed=seed or 0, stateful_shuffle=False
        )
        return (cut for cut in cuts if self.split is None or split_of(cut) == self.split)


def _split_of_line(line: str) -> str | None:
    """`split_of` for a line of a cut manifest; lines without the word are not parsed."""
    return split_of(deserialize_item(json.loads(line))) if '"split"' in line else None


def _distinct(cuts: list[Cut]) -> list[Cut]:
    """The same cuts; of several with one id, as of files of one name in many folders, the later ids get a number."""
    seen: Counter[str] = Counter()
    for cut in cuts:
        seen[cut.id] += 1
        if seen[cut.id] > 1:
            cut.id = f"{cut.id}#{seen[cut.id]}"
    return cuts


def _chosen_split(path: Path, splits: Iterable[str | None], split: str | None, default_split: str) -> str | None:
    """The split to keep, None for all. Reads no further than the first clip of the split that is asked for."""
    wanted, clips, present = split or default_split, 0, set()
    for clips, found in enumerate(splits, start=1):  # noqa: B007
        if found == wanted:
            return wanted
        present.add(found)
    if clips == 0:
        known = " ".join(sorted(AUDIO_SUFFIXES))
        raise UserError(f"{path} holds no clips; expected manifest lines, or audio files ({known})")
    if split == ALL:
        return None
    named = sorted(str(name) for name in present - {None})
    if named:
        raise UserError(f"{path} has no split {wanted!r}; its splits are {', '.join(named)}: choose with --split")
    if split is not None:
        raise UserError(f"{path} has no split {split!r}: its rows name no split; leave --split out to use them all")
    log.info("%s names no splits: all of its %d clips are used", path, clips)
    return None


def _shards(folder: Path) -> dict[str, list[Path]]:
    """The shards of a Shar directory that hold cuts and their audio; empty if the folder is none."""
    fields = {
        "cuts": sorted(folder.glob("cuts.*.jsonl*")),
        "recording": sorted(folder.glob("recording.*")),
    }
    shards = {field: paths for field, paths in fields.items() if paths}
    if "cuts" not in shards:
        return {}
    if len({len(paths) for paths in shards.values()}) > 1:
        counts = ", ".join(f"{len(paths)} of {field}" for field, paths in shards.items())
        raise UserError(f"Shar directory {folder} is incomplete: {counts} shards; every field needs as many")
    return shards


def _read_directory(folder: Path) -> list[Cut]:
    if (folder / "wav.scp").is_file():
        return _read_kaldi(folder)
    files = sorted(file for file in folder.rglob("*") if not file.name.startswith("."))
    audio = [file for file in files if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file()]
    transcripts = [file for file in files if file.name.endswith(".trans.txt")]
    if transcripts:
        return _read_librispeech(folder, audio, transcripts)
    return [_whole_file(file.relative_to(folder).as_posix(), file) for file in audio]


def _read_manifest(path: Path) -> list[Cut]:
    rows = [(number, _parsed(path, number, line)) for number, line in _numbered(path)]
    if rows and str(rows[0][1].get("type")) in _CUT_TYPES:
        return [_lhotse_cut(path, number, row) for number, row in rows]
    return [_nemo_cut(path, number, row) for number, row in rows]


def _lhotse_cut(path: Path, number: int, row: dict[str, Any]) -> Cut:
    if str(row.get("type")) not in _CUT_TYPES:
        raise UserError(f"{path} line {number}: not a lhotse cut like the first line, its type is {row.get('type')!r}")
    if "duration" in row:  # that of a mixed cut is its tracks'
        _seconds(f"{path} line {number}", "duration", row["duration"])
    try:
        return deserialize_item(row)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} line {number}: not a lhotse cut ({error!r})") from error


def _nemo_cut(manifest: Path, number: int, row: dict[str, Any]) -> Cut:
    where = f"{manifest} line {number}"
    name, text, speaker = row.get("audio_filepath"), row.get("text"), row.get("speaker")
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: no audio_filepath; expected the path of an audio file under that key")
    if not isinstance(text, str | None):
        raise UserError(f"{where}: text must be a string, got {text!r}")
    known: dict[str, Any] = {
        "text": text,
        "speaker": None if speaker is None else str(speaker),
        "custom": {key: value for key, value in row.items() if key not in _NEMO_FIELDS},
    }
    file = os.path.join(manifest.parent, name)
    seconds = None if row.get("duration") is None else _seconds(where, "duration", row["duration"])
    if row.get("offset") is None:
        return _whole_file(name, file, seconds, **known)
    return _segment(name, file, _header(file), _seconds(where, "offset", row["offset"], least=0.0), seconds, **known)


def _seconds(where: str, key: str, value: object, least: float = math.ulp(0.0)) -> float:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not least <= number < math.inf:
        bound = f"at least {least:g}" if least <= 0 else "above 0"
        raise UserError(f"{where}: {key} must be a number of seconds {bound}, got {value!r}")
    return float(number)


def _read_kaldi(folder: Path) -> list[Cut]:
    files: dict[str, Path] = {}
    for where, (recording, location) in _table(folder / "wav.scp", 2):
        if recording in files:
            raise UserError(f"{where}: recording {recording!r} is listed twice")
        if "|" in (location[0], location[-1]):
            raise UserError(
                f"{where}: piped commands are not run, got {location!r}; write the audio to a file and give its path"
            )
        # Kaldi counts from the working directory; a folder that was moved as a whole is found as well.
        files[recording] = Path(location) if Path(location).exists() else folder / location
    texts = {fields[0]: fields[1] for _, fields in _table(folder / "text", 2, optional=True)}
    speakers = {fields[0]: fields[1] for _, fields in _table(folder / "utt2spk", 2, optional=True)}

    def known(utterance: str) -> dict[str, Any]:
        return {"text": texts.get(utterance), "speaker": speakers.get(utterance)}

    if not (folder / "segments").is_file():
        cuts = [_whole_file(name, file, **known(name)) for name, file in files.items()]
    else:
        cuts, headers = [], {name: _header(file) for name, file in files.items()}
        for where, (utterance, recording, start, end) in _table(folder / "segments", 4):
            if recording not in files:
                raise UserError(f"{where}: recording {recording!r} is not in wav.scp")
            first = _seconds(where, "start", _number(start), least=0.0)
            last = _seconds(where, "end", _number(end), least=-1.0)
            seconds = None if last == -1 else _seconds(where, "end minus start", last - first)
            header = headers[recording]
            cuts.append(_segment(utterance, files[recording], header, first, seconds, **known(utterance)))
    _count_unused(folder, "text", len(texts.keys() - {cut.id for cut in cuts}))
    return cuts


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _read_librispeech(folder: Path, audio: Sequence[Path], transcripts: Sequence[Path]) -> list[Cut]:
    """Files named speaker-chapter-number; folders above the speakers, such as train-clean-100, give the split."""
    texts = {fields[0]: fields[1] for file in transcripts for _, fields in _table(file, 2)}
    cuts = []
    for file in audio:
        speaker, _, _ = file.stem.partition("-")
        *above, _speaker, _chapter, _name = ("", "", *file.relative_to(folder).parts)
        subset = above[-1] if above else ""
        custom = {"subset": subset, "split": subset.partition("-")[0]} if subset else {}
        cuts.append(_whole_file(file.stem, file, text=texts.get(file.stem), speaker=speaker, custom=custom))
    _count_unused(folder, "trans.txt", len(texts.keys() - {cut.id for cut in cuts}))
    return cuts


def _count_unused(folder: Path, table: str, unused: int) -> None:
    if unused:
        log.warning("%s: %d transcripts in %s have no audio and are not used", folder, unused, table)


def _table(path: Path, columns: int, optional: bool = False) -> Iterator[tuple[str, list[str]]]:
    """The lines of a Kaldi table, cut into columns (the last keeps its spaces and may be empty in a transcript)."""
    if optional and not path.is_file():
        return
    transcript = path.name == "text" or path.name.endswith(".trans.txt")
    for number, line in _numbered(path):
        fields = line.split(maxsplit=columns - 1)
        if transcript and len(fields) == 1:
            fields.append("")
        if len(fields) != columns:
            raise UserError(f"{path} line {number}: expected {columns} columns, got {len(fields)}")
        yield f"{path} line {number}", fields


def _open(path: Path) -> TextIO:
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8", errors="replace")


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, stripped, with their numbers."""
    try:
        with _open(path) as file:
            yield from ((number, line.strip()) for number, line in enumerate(file, start=1) if line.strip())
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _lines_of(paths: Iterable[Path]) -> Iterator[str]:
    return (line for path in paths for _, line in _numbered(path))


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {number}: not JSON ({error}); expected one JSON object a line") from error
    if not isinstance(row, dict):
        raise UserError(f"{path} line {number}: expected a JSON object, got {line[:40]!r}")
    return row


def _header(file: str | Path) -> tuple[float, int] | None:
    """Seconds and sampling rate; None if the header cannot be read: the reader of the audio will name the file."""
    try:
        info = soundfile.info(str(file))
    except (soundfile.SoundFileError, OSError, TypeError, ValueError):
        return None
    return (info.duration, info.samplerate) if 0 < info.frames < UNKNOWN_FRAMES else None


def _whole_file(
    id_: str, file: str | Path, seconds: float | None = None, rate: int = NOMINAL_RATE, **known: Any
) -> Cut:
    """A cut over all of a file; `seconds` spares the look at the header."""
    if seconds is None:
        seconds, rate = _header(file) or (NOMINAL_SECONDS, rate)
    return _cut(_recording(id_, file, seconds, rate), id_, 0.0, seconds, **known)


def _segment(
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
