import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from diminuendo.data.audio import BadAudio
from diminuendo.data.connected import (
    FADE,
    FRAME,
    HOP,
    LEVEL,
    MARGIN,
    Clip,
    Joining,
    Word,
    connect,
    deal,
    join,
    plan,
    prepare,
    quietest_frame,
    read_words,
    spoken,
)
from diminuendo.data.files import whole_file
from diminuendo.data.manifest import read_cuts
from diminuendo.errors import UserError

RATE = 16_000
WORDS = ("low", "mid", "high")
SPEAKERS = {"ann": "train", "bob": "train", "cy": "dev", "di": "test", "ed": "test"}
TAKES = 5
CLIPS = len(WORDS) * TAKES  # of a speaker
TRAIN = 40


def tone_burst(hertz: float, before: float, seconds: float, after: float, seed: int = 0) -> np.ndarray:
    """A tone in noise 60 dB below it; times in seconds."""
    first, length, rest = (round(part * RATE) for part in (before, seconds, after))
    audio = np.random.default_rng(seed).normal(0, 0.0002, first + length + rest)
    audio[first : first + length] += 0.3 * np.sin(2 * np.pi * hertz * np.arange(length) / RATE)
    return audio.astype(np.float32)


def clip(folder: Path, name: str, audio: np.ndarray, text: str, speaker: str, split: str) -> Clip:
    soundfile.write(folder / f"{name}.wav", audio, RATE)
    return Clip(name, whole_file(name, folder / f"{name}.wav"), text, speaker, split)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder, made = tmp_path_factory.mktemp("clips"), []
    for speaker, split in SPEAKERS.items():
        for pitch, word in enumerate(WORDS, 1):
            for take in range(TAKES):
                random = np.random.default_rng([pitch, take, ord(speaker[0])])
                times = random.uniform(0.1, 0.3, 3)
                audio = tone_burst(400 * pitch, *times, seed=take)
                made.append(clip(folder, f"{speaker}-{word}-{take}", audio, word, speaker, split))
    return made


@pytest.fixture(scope="module")
def corpus(clips: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return connect(tmp_path_factory.mktemp("connected") / "corpus", clips, train=TRAIN, seed=3).parent


@pytest.fixture(scope="module")
def rows(corpus: Path) -> list[dict]:
    return read_rows(corpus)


def read_rows(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]


def read_bytes(directory: Path) -> dict[str, bytes]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def of(rows: list[dict], split: str) -> list[dict]:
    return [row for row in rows if row["split"] == split]


@pytest.mark.parametrize("split", ["dev", "test"])
def test_in_dev_and_test_every_clip_is_used_exactly_once(rows, clips, split):
    used = [name for row in of(rows, split) for name in row["clips"]]
    assert sorted(used) == sorted(clip.name for clip in clips if clip.split == split)


def test_train_has_the_utterances_asked_for_and_uses_clips_of_its_own_equally_often(rows, clips):
    used = Counter(name for row in of(rows, "train") for name in row["clips"])
    assert len(of(rows, "train")) == TRAIN
    assert used.keys() == {clip.name for clip in clips if clip.split == "train"}
    assert max(used.values()) - min(used.values()) == 1


def test_an_utterance_is_of_one_speaker_and_a_speaker_of_one_split(rows):
    assert {(row["speaker"], row["split"]) for row in rows} == set(SPEAKERS.items())
    assert [{name.split("-")[0] for name in row["clips"]} for row in rows] == [{row["speaker"]} for row in rows]


def test_text_and_number_of_words_are_those_of_the_clips(rows):
    assert [row["text"] for row in rows] == [" ".join(name.split("-")[1] for name in row["clips"]) for row in rows]
    assert [row["num_words"] for row in rows] == [len(row["text"].split()) for row in rows]


def test_audio_between_starts_and_ends_is_the_prepared_clip_and_what_is_said_is_heard(rows, clips, corpus):
    words = {word.clip.name: word.audio for word in read_words(clips)}
    for row in rows:
        audio, rate = soundfile.read(corpus / row["audio_filepath"], dtype="int16")
        assert (rate, len(audio) / rate) == (RATE, row["duration"])
        for name, text, start, end in zip(row["clips"], row["text"].split(), row["starts"], row["ends"], strict=True):
            heard = audio[round(start * RATE) : round(end * RATE)]
            assert heard.tobytes() == words[name].tobytes()
            loudest = np.abs(np.fft.rfft(heard)).argmax() * RATE / len(heard)
            assert round(loudest / 400) == WORDS.index(text) + 1


def test_gaps_are_drawn_from_0_to_200_ms_before_between_and_after(rows):
    gaps = [
        start - end
        for row in rows
        for end, start in zip([0.0, *row["ends"]], [*row["starts"], row["duration"]], strict=True)
    ]
    assert -1e-9 < min(gaps) < 0.02
    assert 0.18 < max(gaps) < 0.2 + 1e-9
    assert 0.08 < np.mean(gaps) < 0.12


def test_the_manifest_reads_as_data_with_its_splits(corpus, rows):
    cuts = read_cuts(corpus, "test")
    assert [cut.supervisions[0].text for cut in cuts] == [row["text"] for row in of(rows, "test")]
    assert [cut.duration for cut in cuts] == [row["duration"] for row in of(rows, "test")]
    names = {path.relative_to(corpus).as_posix() for path in corpus.rglob("*.flac")}
    assert sorted(names) == sorted(row["audio_filepath"] for row in rows)


def test_the_same_seed_gives_the_same_bytes_and_more_utterances_begin_with_the_fewer(corpus, clips, rows, tmp_path):
    connect(tmp_path / "again", clips, train=TRAIN, seed=3)
    assert read_bytes(tmp_path / "again") == read_bytes(corpus)
    connect(tmp_path / "more", clips, train=TRAIN + 30, seed=3)
    more = read_rows(tmp_path / "more")
    assert of(more, "train")[:TRAIN] + more[TRAIN + 30 :] == rows
    audio = read_bytes(corpus / "audio")
    assert audio.items() <= read_bytes(tmp_path / "more" / "audio").items()


def test_another_seed_gives_other_utterances(clips, rows, tmp_path):
    connect(tmp_path / "other", clips, train=TRAIN, seed=4)
    other = read_rows(tmp_path / "other")
    assert [row["text"] for row in of(other, "train")] != [row["text"] for row in of(rows, "train")]


def test_half_of_the_hands_are_single_and_the_other_sizes_equally_frequent():
    hands = deal([range(30_000)], 6, 0.5, np.random.default_rng(0))
    shares = {size: count / len(hands) for size, count in Counter(map(len, hands)).items()}
    assert shares == pytest.approx({1: 0.5, 2: 0.1, 3: 0.1, 4: 0.1, 5: 0.1, 6: 0.1}, abs=0.02)
    assert sorted(member for hand in hands for member in hand) == list(range(30_000))


def test_numbers_of_words_are_equally_frequent_in_dev_and_test(clips):
    words = [Word(replace(clips[0], split="dev"), np.zeros(0, np.int16))] * 20_000
    utterances = plan(words, "dev", 1, Joining(max_words=4), 0)
    shares = {size: count / len(utterances) for size, count in Counter(map(len, utterances)).items()}
    assert shares == pytest.approx(dict.fromkeys(range(1, 5), 0.25), abs=0.02)


def test_every_word_is_equally_likely_after_every_other():
    words = [word for word in range(4) for _ in range(3000)]
    hands = deal([words], 6, 0.0, np.random.default_rng(0))
    after = Counter(pair for hand in hands for pair in pairwise(hand))
    assert len(after) == 16
    assert max(after.values()) < 1.15 * min(after.values())


@pytest.mark.parametrize("hertz", [300, 1000, 5000])
def test_trimming_keeps_a_tone_burst_and_a_margin_around_it(hertz):
    audio = tone_burst(hertz, 0.3, 0.2, 0.4)
    assert spoken(audio) == slice(round(0.3 * RATE) - HOP - MARGIN, round(0.5 * RATE) + FRAME + MARGIN)


def test_trimming_keeps_a_fricative_that_is_far_weaker_than_the_vowel_and_drops_hum_that_is_not():
    audio = tone_burst(300, 0.5, 0.3, 0.4)
    at = slice(round(0.35 * RATE), round(0.5 * RATE))
    audio[at] += np.diff(np.random.default_rng(1).normal(0, 0.0005, at.stop - at.start + 1))  # 50 dB below the vowel
    audio += 0.0095 * np.sin(2 * np.pi * 50 * np.arange(len(audio)) / RATE)  # 30 dB below
    assert spoken(audio) == slice(at.start - HOP - MARGIN, round(0.8 * RATE) + FRAME + MARGIN)


def test_trimming_keeps_all_of_a_clip_that_is_cut_close():
    audio = tone_burst(400, 0.0, 0.25, 0.0)
    assert spoken(audio) == slice(0, len(audio))


def test_a_prepared_word_has_the_common_level_no_offset_and_no_click_at_its_ends():
    for loudness in (0.01, 1.0, 3.0):
        word = prepare(loudness * tone_burst(400, 0.2, 0.3, 0.2) + np.float32(0.05)) / 2**15
        assert np.sqrt(np.mean(word**2)) == pytest.approx(LEVEL, rel=0.01)
        assert abs(word.mean()) < 1e-3
        cut_close = prepare(loudness * tone_burst(400, 0.0, 0.3, 0.0)[10:-10]) / 2**15  # from peak to peak
        assert (cut_close[0], abs(cut_close[-1]) < 1e-3) == (0.0, True)
        assert np.abs(np.diff(cut_close[:FADE])).max() <= np.abs(np.diff(cut_close[FADE:-FADE])).max()


def test_a_word_of_one_sharp_peak_is_not_clipped():
    audio = np.random.default_rng(0).normal(0, 1e-3, RATE).astype(np.float32)
    audio[RATE // 2] = 1.0
    word = prepare(audio)
    assert int(np.abs(word).max()) == 2**15 - 1
    assert np.count_nonzero(np.abs(word) > 2**14) == 1


def test_gaps_hold_noise_of_the_level_and_band_of_the_quietest_frame():
    random = np.random.default_rng(0)
    narrow = 30 * np.sin(2 * np.pi * 1000 * np.arange(8000) / RATE)
    loud = np.where(np.arange(8000) < 4000, 100 * random.standard_normal(8000), narrow)
    words = [loud.astype(np.int16), (300 * random.standard_normal(8000)).astype(np.int16)]
    joined = join(words, 5.0, random)
    gap = joined.audio[joined.ends[0] : joined.starts[1]].astype(np.float64)
    assert np.sqrt(np.mean(gap**2)) == pytest.approx(30 / np.sqrt(2), rel=0.15)
    spectrum = np.abs(np.fft.rfft(gap)) ** 2
    hertz = np.arange(len(spectrum)) * RATE / len(gap)
    assert spectrum[abs(hertz - 1000) < 250].sum() > 0.99 * spectrum.sum()


def test_the_quietest_frame_is_none_of_the_fading_ends():
    word = np.resize(np.array([100, -100], np.int16), 3200)
    word[:FADE] = word[-FADE:] = 0
    word[FADE + 10 * HOP :][:FRAME] = np.resize([90, -90], FRAME)
    loud = np.resize(np.array([200, -200], np.int16), 3200)
    assert quietest_frame([loud, word]).tolist() == [90, -90] * (FRAME // 2)


def test_gaps_beside_digital_silence_are_silent():
    silent_middle = np.concatenate([np.full(800, 900), np.zeros(1600), np.full(800, 900)]).astype(np.int16)
    joined = join([silent_middle], 0.2, np.random.default_rng(0))
    assert np.abs(joined.audio[: joined.starts[0]]).max() == 0


@pytest.mark.parametrize("level", [0.0, 5e-4])
def test_a_clip_that_is_silent_everywhere_is_dropped_and_named(clips, tmp_path, caplog, level):
    noise = np.random.default_rng(0).normal(0, 1, RATE) * level
    silent = clip(tmp_path, "hush", noise, "low", "di", "test")
    connect(tmp_path / "corpus", [*clips, silent], train=1)
    used = [name for row in of(read_rows(tmp_path / "corpus"), "test") for name in row["clips"]]
    assert sorted(used) == sorted(clip.name for clip in clips if clip.split == "test")
    assert [record.getMessage()[:20] for record in caplog.records] == ["skipped hush: silent"]


def test_a_silent_clip_has_no_word():
    with pytest.raises(BadAudio, match=r"silent \(-69 dB of full scale at its loudest\)"):
        spoken(5e-4 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE))


def test_a_speaker_of_two_splits_is_refused(clips, tmp_path):
    with pytest.raises(UserError, match="speaker cy is in dev and train; every speaker needs one split"):
        connect(tmp_path / "corpus", [*clips, replace(clips[0], speaker="cy")], train=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["zoom in", "", "  "])
def test_a_text_that_is_not_one_word_is_refused(clips, tmp_path, text):
    with pytest.raises(UserError, match="ann-low-0: expected one word without white space"):
        connect(tmp_path / "corpus", [replace(clips[0], text=text)], train=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": 0}, "train must be 1 utterance or more, got 0"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
    ],
)
def test_arguments_out_of_range_are_refused(clips, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        connect(tmp_path / "corpus", clips, **{"train": 1, **change})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_words": 1}, "max_words must be at least 2, got 1"),
        ({"singles": 1.5}, "singles must be a fraction from 0 to 1, got 1.5"),
        ({"singles": float("nan")}, "singles must be a fraction from 0 to 1, got nan"),
        ({"max_gap": -0.1}, "max_gap must be from 0 to 10 seconds, got -0.1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Joining(**settings)


def test_an_unknown_split_and_a_corpus_without_train_clips_are_refused_and_leave_nothing(clips, tmp_path):
    with pytest.raises(UserError, match="ann-low-0: expected train, dev or test as its split, got 'validation'"):
        connect(tmp_path / "corpus", [replace(clips[0], split="validation")], train=1)
    with pytest.raises(UserError, match="none of the clips can be used for training"):
        connect(tmp_path / "corpus", [clip for clip in clips if clip.split == "dev"], train=1)
    assert list(tmp_path.iterdir()) == []


def test_a_complete_corpus_is_found_again_and_nothing_is_overwritten(corpus, clips, tmp_path):
    before = read_bytes(corpus)
    assert connect(corpus, clips, train=TRAIN, seed=3) == corpus / "manifest.jsonl"
    for change in ({"train": TRAIN + 1}, {"seed": 4}, {"joining": Joining(singles=0.4)}, {"clips": clips[1:]}):
        arguments = {"clips": clips, "train": TRAIN, "seed": 3, **change}
        with pytest.raises(UserError, match=r"holds a corpus of connected words made with .*; choose another"):
            connect(corpus, arguments.pop("clips"), **arguments)
    assert read_bytes(corpus) == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something other than a corpus of connected words"):
        connect(tmp_path, clips, train=1)
    assert read_bytes(tmp_path) == {"notes.txt": b"mine"}


def test_progress_sees_every_clip_and_every_utterance(clips, tmp_path):
    seen = []

    def track(items, name, unit):
        seen.append((name, len(items), unit))
        return items

    connect(tmp_path / "corpus", clips, train=7, track=track)
    utterances = len(read_rows(tmp_path / "corpus"))
    assert seen == [("read words", len(SPEAKERS) * CLIPS, "clips"), ("join words", utterances, "utterances")]
