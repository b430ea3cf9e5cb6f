import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from diminuendo.data.synthetic import KEYWORDS, VOICES, espeak_paths, make_corpus, record, speaking_process
from diminuendo.errors import UserError

NUM_CLIPS = 70  # no multiple of the number of voices or of splits, and neither are its keywords


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("synthetic") / "corpus", num_clips=NUM_CLIPS, seed=3).parent


@pytest.fixture(scope="module")
def rows(corpus: Path) -> list[dict]:
    return read_rows(corpus)


def read_rows(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]


def read_bytes(directory: Path) -> dict[str, bytes]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def test_the_same_seed_gives_the_same_bytes(corpus, tmp_path):
    make_corpus(tmp_path / "again", num_clips=NUM_CLIPS, seed=3)
    assert read_bytes(tmp_path / "again") == read_bytes(corpus)


def test_another_seed_gives_other_sentences_and_other_audio_of_the_same_keywords(rows, corpus, tmp_path):
    make_corpus(tmp_path / "other", num_clips=NUM_CLIPS, seed=4)
    others = read_rows(tmp_path / "other")
    keyword = rows[0]["audio_filepath"]
    assert [row.get("keyword") for row in others] == [row.get("keyword") for row in rows]
    assert {row["text"] for row in others if "keyword" not in row}.isdisjoint(row["text"] for row in rows)
    assert (tmp_path / "other" / keyword).read_bytes() != (corpus / keyword).read_bytes()


def test_the_manifest_names_every_audio_file_once_with_its_duration_and_format(rows, corpus):
    infos = {row["audio_filepath"]: soundfile.info(corpus / row["audio_filepath"]) for row in rows}
    assert sorted(infos) == sorted(path for path in read_bytes(corpus) if path.endswith(".flac"))
    assert len(infos) == len(rows) == NUM_CLIPS
    assert {(info.samplerate, info.subtype, info.channels) for info in infos.values()} == {(16000, "PCM_16", 1)}
    assert [row["duration"] for row in rows] == [info.duration for info in infos.values()]


def test_keywords_last_about_a_second_and_sentences_some_seconds(rows):
    keywords = [row["duration"] for row in rows if "keyword" in row]
    sentences = [row["duration"] for row in rows if "keyword" not in row]
    assert len(keywords) == NUM_CLIPS * 5 // 8
    assert 0.3 < min(keywords) < max(keywords) < 1.5 < 2 < min(sentences) < max(sentences) < 7


def test_no_speaker_is_in_two_splits(rows):
    speakers = {split: {row["speaker"] for row in rows if row["split"] == split} for split in ("train", "dev", "test")}
    assert {split: len(found) for split, found in speakers.items()} == {"train": 12, "dev": 4, "test": 4}
    assert len(set.union(*speakers.values())) == len(VOICES) == 20


@pytest.mark.parametrize("kind", ["keyword", "sentence"])
def test_each_split_has_clips_of_each_kind(rows, kind):
    assert {row["split"] for row in rows if ("keyword" in row) == (kind == "keyword")} == {"train", "dev", "test"}


def test_every_speaker_says_every_keyword_before_a_second_take(tmp_path, monkeypatch):
    monkeypatch.setattr("diminuendo.data.synthetic.VOICES", VOICES[:2])
    num_keywords = 2 * len(KEYWORDS) + 1
    make_corpus(tmp_path / "corpus", num_clips=num_keywords * 8 // 5 + 1)
    said = [row for row in read_rows(tmp_path / "corpus") if "keyword" in row]
    first = {(row["speaker"], row["keyword"], row["text"]) for row in said if row["take"] == 1}
    assert first == {(voice[0], keyword, keyword) for voice in VOICES[:2] for keyword in KEYWORDS}
    assert [row["take"] for row in said] == [1] * (2 * len(KEYWORDS)) + [2]


def test_two_takes_of_the_same_speech_differ():
    speech = np.random.default_rng(0).integers(-9000, 9000, 22050).astype(np.int16)
    first, second = (record(speech, np.random.default_rng(take)) for take in (1, 2))
    assert len(first) != len(second)


def test_a_clip_is_its_speech_after_silence_with_noise_15_to_30_db_below():
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(44100) / 22050)).astype(np.int16)
    for seed in range(20):
        clip = record(tone, np.random.default_rng(seed)).astype(np.float64)
        silence, speech = clip[:800], clip[8000:24000]
        noise_power = np.mean(silence**2)
        assert 32000 + 1600 <= len(clip) <= 32000 + 9600
        assert 14 < 10 * np.log10((np.mean(speech**2) - noise_power) / noise_power) < 31
        assert -15.1 < 20 * np.log10(np.abs(clip).max() / 32768) < -0.9


@pytest.fixture
def one_utterance() -> Callable:
    def say(seed: int, text: str = "seven", **changes):
        with speaking_process(*espeak_paths()) as fresh:
            return fresh({"text": text, "voice": "en-us+f2", "rate": 160, "pitch": 50, "seed": seed, **changes})

    return say


def test_phones_are_ipa_without_stress_and_cover_every_clause(one_utterance):
    _, phones = one_utterance(1, "seven, ten")
    assert phones == ["s", "ɛ", "v", "ə", "n", "t", "ɛ", "n"]


def test_a_higher_rate_is_shorter_and_another_pitch_or_voice_sounds_different(one_utterance):
    (plain, _), (fast, _) = one_utterance(1), one_utterance(1, rate=240)
    assert len(fast) < 0.9 * len(plain)
    for change in ({"pitch": 80}, {"voice": "en-us+m3"}):
        assert one_utterance(1, **change)[0].tobytes() != plain.tobytes()


def test_the_noise_of_a_voice_comes_from_the_seed_and_not_from_the_clock(one_utterance):
    first, again, other = (one_utterance(seed)[0].tobytes() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_every_voice_is_a_variant_of_the_library_which_would_speak_plainly_without_a_word():
    available = {path.name for path in (Path(espeak_paths()[1]) / "voices" / "!v").iterdir()}
    assert {variant for variant, _, _ in VOICES} - available == set()


def test_a_voice_that_the_library_lacks_is_named(capfd):
    with speaking_process(*espeak_paths()) as say, pytest.raises(RuntimeError, match=r"status 1 at .*'xx-none'"):
        say({"text": "seven", "voice": "xx-none", "rate": 160, "pitch": 50, "seed": 0})
    assert "answered with status 2 to" in capfd.readouterr().err


def test_a_request_to_a_process_that_has_ended_says_so(capfd):
    with speaking_process(*espeak_paths()) as say:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="eSpeak NG ended with status 1"):
                say({"text": "seven", "voice": "xx-none", "rate": 160, "pitch": 50, "seed": 0})
    assert capfd.readouterr().err.count("Traceback") == 1


def test_a_library_that_does_not_load_stops_the_corpus_and_leaves_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("diminuendo.data.synthetic.espeak_paths", lambda: ("no-library.so", "no-data"))
    with pytest.raises(RuntimeError, match="eSpeak NG ended with status 1"):
        make_corpus(tmp_path / "corpus", num_clips=4)
    assert "no-library.so" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_complete_corpus_is_found_again_without_the_extra(corpus, monkeypatch):
    before = read_bytes(corpus)
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    assert make_corpus(corpus, num_clips=NUM_CLIPS, seed=3) == corpus / "manifest.jsonl"
    assert read_bytes(corpus) == before


def test_without_the_extra_the_message_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError, match=r"needs the extra: pip install 'diminuendo\[synthetic\]'"):
        make_corpus(tmp_path / "corpus")


@pytest.mark.parametrize("change", [{"num_clips": NUM_CLIPS + 1}, {"seed": 5}])
def test_a_corpus_made_with_other_arguments_is_refused(corpus, change):
    with pytest.raises(UserError, match=r"made with .*; choose another directory or remove it"):
        make_corpus(corpus, **{"num_clips": NUM_CLIPS, "seed": 3, **change})


def test_a_directory_with_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something other than a synthetic corpus"):
        make_corpus(tmp_path)
    assert read_bytes(tmp_path) == {"notes.txt": b"mine"}


def test_a_corpus_of_no_clips_is_refused(tmp_path):
    with pytest.raises(UserError, match="num_clips must be 1 or more, got 0"):
        make_corpus(tmp_path / "corpus", num_clips=0)


def test_an_interrupted_corpus_leaves_nothing_and_progress_counts_the_clips(tmp_path):
    seen = []

    def interrupt(done: int, num_clips: int) -> None:
        seen.append((done, num_clips))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_corpus(tmp_path / "corpus", num_clips=8, progress=interrupt)
    assert seen == [(1, 8), (2, 8), (3, 8)]
    assert list(tmp_path.iterdir()) == []


def test_a_corpus_that_another_process_finished_meanwhile_is_taken(corpus, tmp_path):
    directory = tmp_path / "corpus"

    def finish_first(done: int, num_clips: int) -> None:
        if done == num_clips:
            directory.mkdir()
            for name, content in read_bytes(corpus).items():
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                (directory / name).write_bytes(content)

    make_corpus(directory, num_clips=NUM_CLIPS, seed=3, progress=finish_first)
    assert read_bytes(directory) == read_bytes(corpus)
    assert list(tmp_path.iterdir()) == [directory]
