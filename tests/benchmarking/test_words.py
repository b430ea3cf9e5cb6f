"""Connected words from folders like those of the real recordings."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from benchmarks.words import __main__ as entry
from benchmarks.words.corpus import words_of

from diminuendo.errors import UserError

COMMANDS = ("zoom in", "zero", "undo")
SPEAKERS = {"0001": "train", "0002": "dev", "0003": "test"}
DIGIT_SPEAKERS = ("george", "lucas", "nicolas", "theo", "yweweler")


def folder(speech: Path, name: str, rows: list[dict]) -> None:
    (speech / name).mkdir(parents=True)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 4800)
    for index, row in enumerate(rows):
        soundfile.write(speech / name / f"{index}.wav", noise, 16_000)
        row |= {"audio_filepath": f"{index}.wav", "duration": 0.3}
    (speech / name / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    commands = [{"keyword": word, "speaker": who, "split": SPEAKERS[who]} for who in SPEAKERS for word in COMMANDS]
    # By take, as the real ones are split: a speaker is in train and test.
    digits = [
        {"keyword": "zero", "speaker": who, "split": part} for who in DIGIT_SPEAKERS for part in ("train", "test")
    ]
    folder(tmp_path / "speech", "arabic_commands", commands)
    folder(tmp_path / "speech", "digits", digits)
    return tmp_path / "speech"


def test_words_that_two_languages_name_alike_are_kept_apart_and_each_is_one_word(speech):
    texts = {(clip.speaker.split("/")[0], clip.text) for clip in words_of(speech)}
    assert texts == {
        *(("arabic_commands", "zoomin"), ("arabic_commands", "sifr"), ("arabic_commands", "undo")),
        ("digits", "zero"),
    }


def test_splits_are_by_speaker_for_digits_too(speech):
    splits = {(clip.speaker.split("/")[1], clip.split) for clip in words_of(speech)}
    digits = {("george", "train"), ("lucas", "train"), ("nicolas", "train"), ("theo", "test"), ("yweweler", "test")}
    assert splits == {*SPEAKERS.items(), *digits}


def test_a_folder_or_a_field_that_is_missing_is_named(speech):
    manifest = speech / "arabic_commands" / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"keyword"', '"word"'))
    with pytest.raises(UserError, match=r"arabic_commands/0.wav: expected a keyword, a speaker and a split, got None"):
        words_of(speech)
    manifest.unlink()
    with pytest.raises(UserError, match="expected folders arabic_commands and digits with"):
        words_of(speech)


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["words", *map(str, words)])
    entry.main()


def test_the_command_prints_counts_of_what_it_made(speech, tmp_path, monkeypatch, capsys):
    run(monkeypatch, speech, tmp_path / "out", "--train", 9, "--max-words", 2, "--json")
    made = capsys.readouterr()
    printed = json.loads(made.out)
    rows = [json.loads(line) for line in Path(printed["manifest"]).read_text().splitlines()]
    hours = sum(row["duration"] for row in rows if row["split"] == "test") / 3600
    test = printed["splits"]["test"]
    assert test | {"utterances": 0} == {
        "utterances": 0,
        "hours": round(hours, 3),
        "words": 7,
        "vocabulary": 4,
        "clips": 7,
        "speakers": 3,
    }
    assert {split: found["utterances"] for split, found in printed["splits"].items()} == {
        split: sum(row["split"] == split for row in rows) for split in ("train", "dev", "test")
    }
    assert printed["splits"]["train"]["utterances"] == 9
    assert max(row["num_words"] for row in rows) == 2
    assert "for 19 clips (from one)" in made.err


def test_the_command_refuses_a_directory_that_it_did_not_make_in_one_line(speech, tmp_path, monkeypatch, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, speech, tmp_path, "--quiet")
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path} holds something other than a corpus of connected words; choose another")
