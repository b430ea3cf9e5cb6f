"""Folders whose text is in tables beside the audio: Kaldi's and LibriSpeech's."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lhotse.cut import Cut

from diminuendo.data.files import numbered_lines, read_header, seconds_of, segment, whole_file
from diminuendo.errors import UserError

log = logging.getLogger(__name__)


def read_kaldi(folder: Path) -> list[Cut]:
    """The utterances of `segments`, or without it the recordings of wav.scp; UserError for a table that is wrong."""
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
        cuts = [whole_file(name, file, **known(name)) for name, file in files.items()]
    else:
        cuts, headers = [], {name: read_header(file) for name, file in files.items()}
        for where, (utterance, recording, start, end) in _table(folder / "segments", 4):
            if recording not in files:
                raise UserError(f"{where}: recording {recording!r} is not in wav.scp")
            first = seconds_of(where, "start", _number(start), least=0.0)
            last = seconds_of(where, "end", _number(end), least=-1.0)
            seconds = None if last == -1 else seconds_of(where, "end minus start", last - first)
            header = headers[recording]
            cuts.append(segment(utterance, files[recording], header, first, seconds, **known(utterance)))
    _count_unused(folder, "text", len(texts.keys() - {cut.id for cut in cuts}))
    return cuts


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def read_librispeech(folder: Path, audio: Sequence[Path], transcripts: Sequence[Path]) -> list[Cut]:
    """Files named speaker-chapter-number; folders above the speakers, such as train-clean-100, give the split."""
    texts = {fields[0]: fields[1] for file in transcripts for _, fields in _table(file, 2)}
    cuts = []
    for file in audio:
        speaker, _, _ = file.stem.partition("-")
        *above, _speaker, _chapter, _name = ("", "", *file.relative_to(folder).parts)
        subset = above[-1] if above else ""
        custom = {"subset": subset, "split": subset.partition("-")[0]} if subset else {}
        cuts.append(whole_file(file.stem, file, text=texts.get(file.stem), speaker=speaker, custom=custom))
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
    for number, line in numbered_lines(path):
        fields = line.split(maxsplit=columns - 1)
        if transcript and len(fields) == 1:
            fields.append("")
        if len(fields) != columns:
            raise UserError(f"{path} line {number}: expected {columns} columns, got {len(fields)}")
        yield f"{path} line {number}", fields
