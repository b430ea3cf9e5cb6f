import gzip
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut

from diminuendo.data.manifest import ALL, read_cuts, split_of, total_seconds
from diminuendo.errors import UserError


def write_audio(path: Path, seconds: float = 0.5, rate: int = 16_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, int(seconds * rate)).astype(np.float32)
    kinds = {".opus": {"format": "OGG", "subtype": "OPUS"}, ".mp3": {"format": "MP3"}, ".ogg": {"format": "OGG"}}
    soundfile.write(path, noise, rate, **kinds.get(path.suffix, {}))
    return path


def write_manifest(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def row(name: str = "a.wav", duration: object = 1.0, **others: object) -> dict[str, object]:
    return {"audio_filepath": name, "duration": duration, **others}


def ids(cuts: CutSet) -> list[str]:
    return [cut.id for cut in cuts]


def seen(cut: MonoCut) -> tuple[Any, ...]:
    """What a supervision says, with its span, which must be the cut's."""
    (supervision,) = cut.supervisions
    assert (supervision.start, supervision.duration) == (0.0, cut.duration)
    return supervision.text, supervision.speaker, supervision.custom


def source(cut: MonoCut) -> str:
    return cut.recording.sources[0].source


def test_a_nemo_manifest_keeps_text_speaker_and_every_other_key(tmp_path: Path) -> None:
    known = {"keyword": "go", "split": "train", "take": 3, "noise": 0.5}
    path = write_manifest(tmp_path / "m.json", row(text="Go now", speaker=7, **known))
    (cut,) = read_cuts(path, None)
    assert (cut.id, cut.start, cut.duration, *seen(cut)) == ("a.wav", 0, 1.0, "Go now", "7", known)


def test_paths_are_absolute_or_relative_to_the_manifest(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "m.jsonl", row("audio/a.wav"), "", row("/elsewhere/b.wav"))
    assert [source(cut) for cut in read_cuts(path, None)] == [str(tmp_path / "audio/a.wav"), "/elsewhere/b.wav"]


def test_rows_of_one_file_get_ids_of_their_own(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "m.jsonl", row(offset=0), row(offset=1), row("b.wav"), row(offset=2.5))
    cuts = read_cuts(path, None)
    assert ids(cuts) == ["a.wav", "a.wav#2", "b.wav", "a.wav#3"]
    assert [(cut.start, cut.duration) for cut in cuts] == [(0, 1), (1, 1), (0, 1), (2.5, 1)]


def test_the_duration_comes_from_the_manifest_and_from_the_header_only_where_it_lacks(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", 0.5)
    write_audio(tmp_path / "b.wav", 0.75, rate=8000)
    path = write_manifest(tmp_path / "m.jsonl", row(duration=9), row("b.wav", None), row("b.wav", None, offset=0.25))
    cuts = read_cuts(path, None)
    assert [cut.duration for cut in cuts] == [9.0, 0.75, 0.5]
    assert [cut.sampling_rate for cut in cuts] == [16_000, 8000, 8000]
    assert total_seconds(cuts) == 10.25


def test_missing_and_broken_files_pass_while_the_manifest_is_read(tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    names = ["missing.wav", "broken.wav"]
    rows = [row(name, duration) for name in names for duration in (1.0, None)]
    assert ids(read_cuts(write_manifest(tmp_path / "m.jsonl", *rows), None))[::2] == names
    assert ids(read_cuts(write_folder(tmp_path, "broken.wav"), None)) == ["broken.wav"]


def write_folder(tmp_path: Path, *names: str) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes((tmp_path / name).read_bytes())
    return folder


def test_a_directory_with_a_manifest_is_that_manifest(tmp_path: Path) -> None:
    write_audio(tmp_path / "audio" / "unlisted.wav")
    write_manifest(tmp_path / "manifest.jsonl", row("audio/a.wav"))
    assert ids(read_cuts(tmp_path, None)) == ["audio/a.wav"]


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz", "manifest.jsonl"])
def test_a_lhotse_manifest_is_told_by_its_content(tmp_path: Path, name: str) -> None:
    nemo = write_manifest(tmp_path / "nemo.jsonl", row(text="x", split="dev"), row("b.wav", split="train"))
    cuts = CutSet([*read_cuts(nemo, "dev"), *read_cuts(nemo, "train")])
    cuts.to_file(tmp_path / name)
    assert list(read_cuts(tmp_path / name, "dev")) == [cuts[0]]
    assert ids(read_cuts(tmp_path / name, None)) == ["b.wav"]


def test_cuts_of_one_id_get_ids_of_their_own(tmp_path: Path) -> None:
    (cut,) = read_cuts(write_manifest(tmp_path / "m.jsonl", row()), None)
    cuts = read_cuts(write_manifest(tmp_path / "cuts.jsonl", *[cut.to_dict()] * 3), None)
    assert [c.id for c in cuts] == [cut.id, f"{cut.id}#2", f"{cut.id}#3"]


def test_a_split_may_be_a_number(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "m.jsonl", row(split=0), row(split=1))
    assert [len(read_cuts(path, name)) for name in ("0", "1")] == [1, 1]


def test_a_split_is_found_in_the_cut_before_its_supervision(tmp_path: Path) -> None:
    (cut,) = read_cuts(write_manifest(tmp_path / "m.jsonl", row(split="train")), None)
    inner = split_of(cut)
    cut.custom = {"split": "dev"}
    assert (inner, split_of(cut), split_of(cut.drop_supervisions())) == ("train", "dev", "dev")


def write_kaldi(folder: Path, **tables: str) -> Path:
    write_audio(folder / "r1.wav", 1.0)
    write_audio(folder / "r2.wav", 0.5, rate=8000)
    tables = {"wav.scp": f"r1 {folder}/r1.wav\nr2 r2.wav\n"} | tables
    for name, content in tables.items():
        (folder / name).write_text(content)
    return folder


def test_a_kaldi_directory_without_segments_has_a_cut_for_each_recording(tmp_path: Path) -> None:
    folder = write_kaldi(tmp_path, text="r1 Hello  there\nr2\n", utt2spk="r1 ann\nr2 ben\n")
    cuts = read_cuts(folder, None)
    assert [(cut.id, cut.duration, *seen(cut)) for cut in cuts] == [
        ("r1", 1.0, "Hello  there", "ann", {}),
        ("r2", 0.5, "", "ben", {}),
    ]
    assert [Path(source(cut)) for cut in cuts] == [folder / "r1.wav", folder / "r2.wav"]


def test_kaldi_segments_are_parts_of_recordings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    segments = "u1 r1 0.25 0.5\nu2 r1 0.75 -1\nu3 r2 0 0.5\n"
    cuts = read_cuts(write_kaldi(tmp_path, segments=segments, text="u2 hi\nu9 gone\n"), None)
    spans = [(cut.id, cut.start, cut.duration, cut.supervisions[0].text) for cut in cuts]
    assert spans == [("u1", 0.25, 0.25, None), ("u2", 0.75, 0.25, "hi"), ("u3", 0.0, 0.5, None)]
    assert "1 transcripts in text have no audio" in caplog.text


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"wav.scp": "r1 r1.wav\nr2 sox r2.wav -t wav - |\n"}, "wav.scp line 2: piped commands are not run"),
        ({"wav.scp": "r1 r1.wav\nr1 r2.wav\n"}, "line 2: recording 'r1' is listed twice"),
        ({"wav.scp": "r1\n"}, "wav.scp line 1: expected 2 columns, got 1"),
        ({"segments": "u r9 0 1\n"}, "segments line 1: recording 'r9' is not in wav.scp"),
        ({"segments": "u r1 0\n"}, "segments line 1: expected 4 columns, got 3"),
        ({"segments": "u r1 x 1\n"}, "start must be a number of seconds at least 0, got 'x'"),
        ({"segments": "u r1 0 y\n"}, "end must be a number of seconds at least -1, got 'y'"),
        ({"segments": "u r1 2 1\n"}, "end minus start must be a number of seconds above 0, got -1.0"),
        ({"wav.scp": ""}, "holds no clips"),
    ],
)
def test_a_faulty_kaldi_directory_is_an_error(tmp_path: Path, tables: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_cuts(write_kaldi(tmp_path, **tables), None)


def write_librispeech(folder: Path) -> Path:
    write_audio(folder / "19" / "198" / "19-198-0000.flac")
    write_audio(folder / "19" / "198" / "19-198-0001.flac")
    (folder / "19" / "198" / "19-198.trans.txt").write_text("19-198-0000 SO IT GOES\n19-198-0007 GONE\n")
    return folder


def test_a_librispeech_folder_gives_text_and_speaker(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cuts = read_cuts(write_librispeech(tmp_path), None)
    assert [(cut.id, *seen(cut)) for cut in cuts] == [
        ("19-198-0000", "SO IT GOES", "19", {}),
        ("19-198-0001", None, "19", {}),
    ]
    assert "1 transcripts in trans.txt have no audio" in caplog.text


def test_subsets_of_librispeech_are_splits(tmp_path: Path) -> None:
    write_librispeech(tmp_path / "train-clean-100")
    write_librispeech(tmp_path / "dev-other")
    found = [[(split_of(cut), seen(cut)[2]["subset"]) for cut in read_cuts(tmp_path, split)] for split in (None, "dev")]
    assert found == [[("train", "train-clean-100")] * 2, [("dev", "dev-other")] * 2]


def test_a_folder_gives_all_audio_below_it(tmp_path: Path) -> None:
    names = ["a.wav", "b/c.flac", "b/d/e.opus", "f.MP3", "g.ogg"]
    for name in names:
        write_audio(tmp_path / name.replace("MP3", "mp3"), 0.48)
    os.rename(tmp_path / "f.mp3", tmp_path / "f.MP3")
    (tmp_path / "notes.txt").write_text("not audio")
    (tmp_path / "b" / "._c.flac").write_text("a shadow that some archivers leave")
    cuts = read_cuts(str(tmp_path), None)
    assert ids(cuts) == names
    assert [round(cut.duration, 2) for cut in cuts] == [0.48] * 5
    assert [seen(cut) for cut in cuts] == [(None, None, {})] * 5


@pytest.mark.parametrize(
    ("splits", "split", "default", "expected"),
    [
        (["train", "test", "train"], None, "train", [0, 2]),
        (["train", "test", "train"], None, "test", [1]),
        (["train", "test", "dev"], "dev", "train", [2]),
        (["train", "test", None], ALL, "train", [0, 1, 2]),
        ([None, None, ""], None, "train", [0, 1, 2]),
        ([None, "train", "dev"], None, "train", [1]),
    ],
)
def test_the_split_selects_rows(
    tmp_path: Path, splits: list[str | None], split: str | None, default: str, expected: list[int]
) -> None:
    rows = [row(str(index), split=name) for index, name in enumerate(splits)]
    path = write_manifest(tmp_path / "m.jsonl", *rows)
    assert ids(read_cuts(path, split, default)) == [str(index) for index in expected]


def test_reading_all_rows_for_want_of_splits_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    read_cuts(write_manifest(tmp_path / "m.jsonl", row(), row("b.wav")), None)
    assert "names no splits: all of its 2 clips are used" in caplog.text


@pytest.mark.parametrize(
    ("splits", "split", "message"),
    [
        (["test", "dev", None], None, "has no split 'train'; its splits are dev, test"),
        (["train", "dev"], "test", "has no split 'test'; its splits are dev, train"),
        ([None], "test", "has no split 'test': its rows name no split"),
    ],
)
def test_a_split_that_is_not_there_is_an_error(
    tmp_path: Path, splits: list[str | None], split: str | None, message: str
) -> None:
    path = write_manifest(tmp_path / "m.jsonl", *[row(split=name) for name in splits])
    with pytest.raises(UserError, match=message):
        read_cuts(path, split)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", r"line 2: expected a JSON object, got '\[1\]'"),
        ({"duration": 1.0}, "line 2: no audio_filepath"),
        (row(""), "line 2: no audio_filepath"),
        (row(duration=0), "line 2: duration must be a number of seconds above 0, got 0"),
        (row(duration=-1.0), "got -1.0"),
        (row(duration="1.0"), "got '1.0'"),
        (row(duration=True), "got True"),
        (row(duration=float("nan")), "got nan"),
        (row(duration=float("inf")), "got inf"),
        (row(offset=-1), "line 2: offset must be a number of seconds at least 0, got -1"),
        (row(text=5), "line 2: text must be a string, got 5"),
    ],
)
def test_a_faulty_line_is_named(tmp_path: Path, line: object, message: str) -> None:
    path = write_manifest(tmp_path / "m.jsonl", row(), line)
    with pytest.raises(UserError, match=message) as error:
        read_cuts(path, None)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"type": "MonoCut"}, "line 2: not a lhotse cut"),
        ({"type": "MonoCut", "duration": -1.0}, "line 2: duration must be a number of seconds above 0, got -1.0"),
        ({"type": ["MonoCut"]}, "line 2: not a lhotse cut like the first line"),
        (row(), "line 2: not a lhotse cut like the first line, its type is None"),
    ],
)
def test_a_faulty_line_of_a_lhotse_manifest_is_named(tmp_path: Path, line: object, message: str) -> None:
    (cut,) = read_cuts(write_manifest(tmp_path / "m.jsonl", row()), None)
    with pytest.raises(UserError, match=message):
        read_cuts(write_manifest(tmp_path / "cuts.jsonl", cut.to_dict(), line), None)


def test_data_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"DATA .*nothing does not exist; give a JSON-lines manifest"):
        read_cuts(tmp_path / "nothing", None)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_manifest_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "m.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"m.jsonl holds no clips"):
        read_cuts(tmp_path / "m.jsonl", None)


def test_a_folder_without_audio_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not audio")
    with pytest.raises(UserError, match="holds no clips; expected manifest lines, or audio files"):
        read_cuts(tmp_path, None)


def test_a_damaged_archive_is_an_error(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps(row()).encode() * 100)
    (tmp_path / "m.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(UserError, match=r"m.jsonl.gz cannot be read"):
        read_cuts(tmp_path / "m.jsonl.gz", None)


def test_audio_in_place_of_a_manifest_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.wav line 1: not JSON"):
        read_cuts(write_audio(tmp_path / "a.wav"), None)
