"""What DATA names, as lhotse cuts. No audio is decoded; headers are read where nothing else gives a duration."""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item

from diminuendo.data.files import numbered_lines, read_header, seconds_of, segment, whole_file
from diminuendo.data.tables import read_kaldi, read_librispeech
from diminuendo.errors import UserError

log = logging.getLogger(__name__)

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus"})
ALL = "all"
_NEMO_FIELDS = frozenset({"audio_filepath", "duration", "offset", "text", "speaker"})
_CUT_TYPES = frozenset({"MonoCut", "MultiCut", "MixedCut"})
_NO_CUT = (KeyError, TypeError, ValueError, AttributeError)  # what lhotse raises for a line that is none


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
        wanted = _chosen_split(
            path, map(partial(_split_of_line, path), _lines_of(shards["cuts"])), split, default_split
        )
        return CutSet(SharCuts(shards, wanted))
    cuts = _distinct(_read_directory(path) if path.is_dir() else _read_manifest(path))
    wanted = _chosen_split(path, map(split_of, cuts), split, default_split)
    return CutSet([cut for cut in cuts if wanted is None or split_of(cut) == wanted])


def split_of(cut: Cut) -> str | None:
    """The split a cut belongs to, from the custom fields of the cut or of its first supervision; None without one."""
    customs = [getattr(cut, "custom", None), *(s.custom for s in cut.supervisions[:1])]
    return next((str(c["split"]) for c in customs if c and c.get("split") not in (None, "")), None)


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
        try:
            yield from (cut for cut in cuts if self.split is None or split_of(cut) == self.split)
        except _NO_CUT as error:
            raise UserError(
                f"Shar directory {self.shards['cuts'][0].parent}: a line is no lhotse cut ({error!r})"
            ) from error


def _split_of_line(folder: Path, line: str) -> str | None:
    """`split_of` for a line of a cut manifest; lines without the word are not parsed."""
    try:
        return split_of(deserialize_item(json.loads(line))) if '"split"' in line else None
    except _NO_CUT as error:
        raise UserError(f"Shar directory {folder}: a line is no lhotse cut ({error!r})") from error


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
        return read_kaldi(folder)
    files = sorted(file for file in folder.rglob("*") if not file.name.startswith("."))
    audio = [file for file in files if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file()]
    transcripts = [file for file in files if file.name.endswith(".trans.txt")]
    if transcripts:
        return read_librispeech(folder, audio, transcripts)
    return [whole_file(file.relative_to(folder).as_posix(), file) for file in audio]


def _read_manifest(path: Path) -> list[Cut]:
    rows = [(number, _parsed(path, number, line)) for number, line in numbered_lines(path)]
    if rows and str(rows[0][1].get("type")) in _CUT_TYPES:
        return [_lhotse_cut(path, number, row) for number, row in rows]
    return [_nemo_cut(path, number, row) for number, row in rows]


def _lhotse_cut(path: Path, number: int, row: dict[str, Any]) -> Cut:
    if str(row.get("type")) not in _CUT_TYPES:
        raise UserError(f"{path} line {number}: not a lhotse cut like the first line, its type is {row.get('type')!r}")
    if "duration" in row:  # that of a mixed cut is its tracks'
        seconds_of(f"{path} line {number}", "duration", row["duration"])
    try:
        return deserialize_item(row)
    except _NO_CUT as error:
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
    seconds = None if row.get("duration") is None else seconds_of(where, "duration", row["duration"])
    if row.get("offset") is None:
        return whole_file(name, file, seconds, **known)
    return segment(
        name, file, read_header(file), seconds_of(where, "offset", row["offset"], least=0.0), seconds, **known
    )


def _lines_of(paths: Iterable[Path]) -> Iterator[str]:
    return (line for path in paths for _, line in numbered_lines(path))


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {number}: not JSON ({error}); expected one JSON object a line") from error
    if not isinstance(row, dict):
        raise UserError(f"{path} line {number}: expected a JSON object, got {line[:40]!r}")
    return row
