import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import AudioSource, CutSet, MonoCut, MultiCut, Recording
from lhotse.audio.backend import get_current_audio_backend

from diminuendo.data.audio import BadAudio, Skipped, load_waveform
from diminuendo.data.manifest import read_cuts

RATE = 16_000
KINDS = {".opus": {"format": "OGG", "subtype": "OPUS"}, ".mp3": {"format": "MP3"}, ".ogg": {"format": "OGG"}}


def sine(seconds: float, rate: int = RATE, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE)).astype(np.float32)


def cut_of(path: Path, samples: np.ndarray, rate: int = RATE, **how: str) -> MonoCut:
    soundfile.write(path, samples, rate, **(how or KINDS.get(path.suffix, {"subtype": "FLOAT"})))
    (cut,) = read_cuts(path.parent, None)
    return cut


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg", ".opus"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 16_000, 44_100, 48_000])
def test_every_format_rate_and_channel_count_gives_mono_at_the_rate_asked_for(
    tmp_path: Path, suffix: str, channels: int, rate: int
) -> None:
    if suffix == ".opus" and rate == 44_100:
        pytest.skip("Opus has no 44.1 kHz")
    samples = np.stack([sine(1.0, rate)] * channels, axis=1)
    how = {"subtype": "PCM_16"} if suffix == ".flac" else {}
    waveform = load_waveform(cut_of(tmp_path / f"a{suffix}", samples, rate, **how))
    assert (waveform.dtype, waveform.ndim) == (np.float32, 1)
    assert abs(len(waveform) - RATE) <= 0.1 * RATE  # MP3 pads whole frames
    level = np.sqrt(2) * waveform[4000:12_000].std()
    spectrum = np.abs(np.fft.rfft(waveform[4000:12_000]))
    assert level == pytest.approx(0.3, rel=0.1)
    assert spectrum.argmax() == 440 * 8000 // RATE


def test_stereo_at_44100_hz_is_averaged_and_resampled(tmp_path: Path) -> None:
    stereo = np.stack([sine(1.0, 44_100, 0.6), sine(1.0, 44_100, 0.2)], axis=1)
    waveform = load_waveform(cut_of(tmp_path / "a.wav", stereo, 44_100))
    assert len(waveform) == RATE
    np.testing.assert_allclose(waveform[500:-500], sine(1.0, RATE, 0.4)[500:-500], atol=1e-4)


def test_a_file_at_the_rate_asked_for_comes_back_as_written(tmp_path: Path) -> None:
    cut = cut_of(tmp_path / "a.wav", noise(0.5))
    np.testing.assert_array_equal(load_waveform(cut), noise(0.5))
    assert len(load_waveform(cut, sampling_rate=8000)) == 4000


@pytest.mark.parametrize("peak", [1.05, 32_768.0])
def test_audio_beyond_full_scale_is_scaled_down(tmp_path: Path, peak: float) -> None:
    waveform = load_waveform(cut_of(tmp_path / "a.wav", peak * noise(0.5) / np.abs(noise(0.5)).max()))
    np.testing.assert_allclose(waveform, noise(0.5) / np.abs(noise(0.5)).max(), rtol=1e-5)


@pytest.mark.parametrize(("stated", "read"), [(0.25, 0.25), (0.45, 0.5), (0.55, 0.5), (2.0, 0.5)])
def test_a_stated_duration_is_read_as_far_as_there_is_audio(
    tmp_path: Path, stated: float, read: float, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="diminuendo")
    cut_of(tmp_path / "a.wav", noise(0.5))
    (tmp_path / "m.jsonl").write_text(f'{{"audio_filepath": "a.wav", "duration": {stated}}}')
    (cut,) = read_cuts(tmp_path / "m.jsonl", None)
    np.testing.assert_array_equal(load_waveform(cut), noise(0.5)[: int(read * RATE)])
    told = [f"a.wav: 0.50 s of audio, {stated:.2f} s in the manifest (said of the first such clip)"]
    assert [message for message in caplog.messages if "in the manifest" in message] == told * (abs(stated - 0.5) > 0.1)


def test_lengths_are_counted_at_the_rate_of_the_file(tmp_path: Path) -> None:
    cut_of(tmp_path / "a.wav", sine(1.0, 48_000), 48_000)
    (tmp_path / "m.jsonl").write_text('{"audio_filepath": "a.wav", "duration": 1.0}')
    (cut,) = read_cuts(tmp_path / "m.jsonl", None)
    assert len(load_waveform(cut)) == RATE
    assert len(load_waveform(cut, max_seconds=0.5)) == RATE // 2
    (tmp_path / "slow").mkdir()
    slow = cut_of(tmp_path / "slow" / "a.wav", sine(0.15, 8000), 8000)
    assert len(load_waveform(slow)) == 2400  # not too short
    assert len(load_waveform(slow.perturb_volume(0.5))) == 2400  # by lhotse


def test_a_segment_is_read_from_its_place(tmp_path: Path) -> None:
    cut_of(tmp_path / "a.wav", noise(1.0))
    spans = [(0, 0.25), (0.25, 0.5), (0.75, 9.0)]
    lines = [f'{{"audio_filepath": "a.wav", "offset": {start}, "duration": {length}}}\n' for start, length in spans]
    (tmp_path / "m.jsonl").write_text("".join(lines))
    for (start, length), cut in zip(spans, read_cuts(tmp_path / "m.jsonl", None), strict=True):
        expected = noise(1.0)[int(start * RATE) : int((start + length) * RATE)]
        np.testing.assert_array_equal(load_waveform(cut), expected)


def test_a_cut_through_a_cut_is_read_from_its_place(tmp_path: Path) -> None:
    cut = cut_of(tmp_path / "a.wav", noise(1.0)).truncate(offset=0.5, duration=0.25)
    np.testing.assert_array_equal(load_waveform(cut), noise(1.0)[8000:12_000])


def test_a_cut_of_one_declared_channel_reads_that_channel(tmp_path: Path) -> None:
    channels = np.stack([noise(0.5, 1), noise(0.5, 2), noise(0.5, 3)], axis=1)
    soundfile.write(tmp_path / "a.wav", channels, RATE, subtype="FLOAT")
    recording = Recording(
        "a", [AudioSource("file", [0, 1, 2], str(tmp_path / "a.wav"))], RATE, num_samples=8000, duration=0.5
    )
    mono = MonoCut("a", 0, 0.5, channel=1, recording=recording)
    multi = MultiCut("a", 0, 0.5, channel=[0, 2], recording=recording)
    np.testing.assert_array_equal(load_waveform(mono), channels[:, 1])
    np.testing.assert_array_equal(load_waveform(multi), channels[:, [0, 2]].mean(axis=1))
    soundfile.write(tmp_path / "a.wav", channels[:, :1], RATE, subtype="FLOAT")
    with pytest.raises(BadAudio, match="1 channels, expected channel 1"):
        load_waveform(mono)


@pytest.mark.parametrize("rate", [8000, RATE])
def test_shar_reads_like_the_file_it_was_made_from(tmp_path: Path, rate: int) -> None:
    (tmp_path / "files").mkdir()
    cut = cut_of(tmp_path / "files" / "a.wav", sine(1.0, rate), rate, subtype="PCM_16")
    (tmp_path / "shar").mkdir()
    CutSet([cut]).to_shar(tmp_path / "shar", fields={"recording": "flac"}, shard_size=1)
    (packed,) = read_cuts(tmp_path / "shar", None)
    assert packed.recording.sources[0].type == "memory"
    np.testing.assert_array_equal(load_waveform(packed), load_waveform(cut))


def test_cuts_that_lhotse_composes_are_loaded_by_lhotse(tmp_path: Path) -> None:
    before = get_current_audio_backend()
    cut = cut_of(tmp_path / "a.wav", noise(0.5))
    np.testing.assert_allclose(load_waveform(cut.append(cut)), np.tile(noise(0.5), 2), atol=1e-6)
    np.testing.assert_allclose(load_waveform(cut.perturb_volume(0.5)), noise(0.5) / 2, atol=1e-6)
    (tmp_path / "a.wav").unlink()
    with pytest.raises(BadAudio, match="broken"):
        load_waveform(cut.append(cut))
    assert get_current_audio_backend() is before


def test_a_long_clip_is_cropped_where_the_generator_says(tmp_path: Path) -> None:
    (tmp_path / "shar").mkdir()
    (tmp_path / "files").mkdir()
    samples = np.arange(1, RATE + 1, dtype=np.float32) / 2**15
    file = cut_of(tmp_path / "files" / "a.wav", samples, subtype="PCM_16")
    CutSet([file]).to_shar(tmp_path / "shar", fields={"recording": "wav"}, shard_size=1)
    (packed,) = read_cuts(tmp_path / "shar", None)
    composed = file.truncate(duration=0.5).append(file.truncate(offset=0.5))
    for cut in (file, packed, composed):
        cropped = [load_waveform(cut, max_seconds=0.25, generator=np.random.default_rng(s)) for s in range(20)]
        starts = [round(float(waveform[0]) * 2**15) - 1 for waveform in cropped]
        for start, waveform in zip(starts, cropped, strict=True):
            np.testing.assert_allclose(waveform, samples[start : start + 4000], atol=1e-6)
        assert starts == [int(np.random.default_rng(s).integers(12_001)) for s in range(20)]


@pytest.mark.parametrize("rate", [8000, RATE, 44_100])
@pytest.mark.parametrize("speed", [0.5, 0.8, 2.0])
def test_a_clip_at_another_speed_is_as_much_shorter_and_higher(tmp_path: Path, rate: int, speed: float) -> None:
    cut = cut_of(tmp_path / "a.wav", sine(1.0, rate), rate)
    waveform = load_waveform(cut, speed=speed)
    assert abs(len(waveform) - RATE / speed) <= 1
    half = waveform[2000:6000]
    assert np.abs(np.fft.rfft(half)).argmax() == 440 * speed * 4000 // RATE
    assert np.sqrt(2) * half.std() == pytest.approx(0.3, rel=0.02)
    cropped = load_waveform(cut, max_seconds=0.25, generator=np.random.default_rng(0), speed=speed)
    assert len(cropped) == 4000 / speed  # of the clip's own time as long as at any speed


def test_without_a_generator_the_beginning_is_kept(tmp_path: Path) -> None:
    cut = cut_of(tmp_path / "a.wav", sine(1.0, 44_100), 44_100)
    np.testing.assert_allclose(load_waveform(cut, max_seconds=0.25)[:3500], load_waveform(cut)[:3500], atol=1e-3)
    assert len(load_waveform(cut, max_seconds=0.25)) == 4000
    lengths = [len(load_waveform(cut, max_seconds=frames / 44_100)) for frames in range(11_026, 11_100)]
    assert lengths == [frames * 160 // 441 for frames in range(11_026, 11_100)]  # rounded down, never up


def spoiled(samples: np.ndarray, value: float) -> np.ndarray:
    samples[100] = value
    return samples


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros(8000, np.float32), "silent"),
        (np.full(8000, 0.25, np.float32), "silent"),
        (noise(0.09), "too short"),
        (np.zeros(0, np.float32), "empty"),
        (spoiled(noise(0.5), np.nan), "non-finite"),
        (spoiled(noise(0.5), -np.inf), "non-finite"),
    ],
)
def test_unusable_samples_are_named_by_their_reason(tmp_path: Path, samples: np.ndarray, reason: str) -> None:
    with pytest.raises(BadAudio) as error:
        load_waveform(cut_of(tmp_path / "a.wav", samples))
    assert error.value.reason == reason


def test_a_clip_of_exactly_the_shortest_length_is_used(tmp_path: Path) -> None:
    assert len(load_waveform(cut_of(tmp_path / "a.wav", noise(0.1)), min_seconds=0.1)) == 1600


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "missing"), (b"", "empty"), (b"no audio at all", "broken"), (b"fLaC" * 99, "broken")]
)
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg", ".opus"])
def test_unusable_files_are_named_by_their_reason(
    tmp_path: Path, content: bytes | None, reason: str, suffix: str
) -> None:
    if content is not None:
        (tmp_path / f"a{suffix}").write_bytes(content)
    (tmp_path / "m.jsonl").write_text(f'{{"audio_filepath": "a{suffix}", "duration": 1.0}}')
    (cut,) = read_cuts(tmp_path / "m.jsonl", None)
    with pytest.raises(BadAudio) as error:
        load_waveform(cut)
    assert error.value.reason == reason


@pytest.mark.parametrize("name", ["a.raw", "caf\udce9.wav"], ids=["raw", "not UTF-8"])
def test_a_file_that_libsndfile_cannot_be_asked_for_is_broken(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"some bytes")
    (tmp_path / "m.jsonl").write_text(json.dumps({"audio_filepath": name}))
    (cut,) = read_cuts(tmp_path / "m.jsonl", None)
    with pytest.raises(BadAudio, match="broken"):
        load_waveform(cut)


def test_a_flac_file_of_unknown_length_is_broken(tmp_path: Path) -> None:
    """As an encoder leaves it that writes into a pipe: total_samples, the last 36 bits before the checksum, are 0."""
    soundfile.write(tmp_path / "a.flac", noise(0.5), 16_000)
    content = bytearray((tmp_path / "a.flac").read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(content)
    (cut,) = read_cuts(tmp_path, None)
    assert cut.duration < 2
    with pytest.raises(BadAudio, match="does not say how long"):
        load_waveform(cut)


def test_the_first_skipped_clips_are_named_and_all_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    skipped = Skipped()
    assert skipped.summary() == "no clip was skipped"
    for _ in range(2):
        for index in range(25):
            bad = BadAudio("missing", f"/far/{index}.wav") if index else BadAudio("silent", "all zero")
            skipped.add(f"{index}.wav", bad)
    named = ["skipped 0.wav: silent (all zero)"]
    named += [f"skipped {index}.wav: missing (/far/{index}.wav)" for index in range(1, 20)]
    assert caplog.messages == [*named, "more than 20 clips are skipped: from here on they are only counted"]
    assert skipped.summary() == "skipped 25 clips: 24 missing (first: 1.wav), 1 silent (first: 0.wav)"


def test_skipped_clips_survive_a_resume(caplog: pytest.LogCaptureFixture) -> None:
    before, after = Skipped(), Skipped()
    before.add("a.wav", BadAudio("broken", "x"))
    after.load_state_dict(before.state_dict())
    caplog.clear()
    after.add("a.wav", BadAudio("broken", "x"))
    assert (after.summary(), caplog.messages) == ("skipped 1 clip: 1 broken (first: a.wav)", [])
