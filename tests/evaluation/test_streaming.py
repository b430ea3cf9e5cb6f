"""Streaming: what is found while audio comes is what is found in all of it, and nothing is heard before its time."""

import json
import logging
import math
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import NemotronAsrStreamingFeatureExtractor, ParakeetFeatureExtractor

from conformance.test_removal import gated_and_removed
from diminuendo import api, cli
from diminuendo.cli_text import print_heard
from diminuendo.data.batching import Batch
from diminuendo.data.tokens import Tokens, make_tokenizer, save_tokens
from diminuendo.errors import UserError
from diminuendo.evaluation.streaming import Heard, Stream, hear, latency
from diminuendo.evaluation.transcripts import (
    Decoding,
    Recogniser,
    TimedWords,
    hypotheses,
    timed_words,
)
from diminuendo.export.huggingface import save
from diminuendo.families import family_of, model_inputs
from diminuendo.families.recogniser import with_head
from diminuendo.families.streaming import FeatureStream
from diminuendo.tasks.hypotheses import Hypothesis
from tiny import extractor_of, tiny_model, tiny_transducer

TOKENIZER = make_tokenizer("characters", ["abc defghi"])  # ten labels, and behind them the blank
RATE = 16_000


def recogniser(name: str) -> Recogniser:
    """Of a tiny random model, made to emit other labels every few frames, in which attention has a say."""
    model = tiny_transducer("nemotron", "stateless" if "stateless" in name else "rnnt")
    with torch.no_grad():
        for layer in model.encoder.layers:
            layer.self_attn.o_proj.weight *= 5
    if name.startswith("compressed"):
        model = gated_and_removed(model, "heads" if name == "compressed rnnt" else "channels", "some").removed
    if name == "ctc":
        model = with_head(gated_and_removed(model, "channels", "some").removed, "ctc", 10)
    extractor = extractor_of(model)
    inputs = model_inputs(extractor, noise(80_000)[None], torch.tensor([80_000]))
    with torch.no_grad():
        states = model.encoder(**inputs, num_lookahead_tokens=1).last_hidden_state[0]
        if name == "ctc":
            spread(model.ctc_head, states, 3)
        else:
            spread(model.encoder_projector, states, 1)
            spread(model.decoder.decoder_projector, predictor_states(model.decoder), 0.5)
            spread(model.joint.head, model.encoder_projector(states).relu(), 3)
            model.joint.head.bias[10] += 3
            model.config.max_symbols_per_step = 2
    return Recogniser(model, extractor, Tokens.of(TOKENIZER))


def predictor_states(decoder: Any) -> torch.Tensor:
    """What a predictor projects, for some labels."""
    embedded = decoder.embedding.weight
    return decoder.lstm(embedded)[0] if hasattr(decoder, "lstm") else decoder.conv(embedded.T).relu().T


def spread(layer: Any, read: torch.Tensor, deviation: float) -> None:
    """Makes every output of a layer that reads this have a mean of 0 and this deviation."""
    weight = layer.weight.squeeze(-1)  # a convolution's too
    weight *= (deviation / (read @ weight.T).std(0))[:, None]
    layer.bias[:] = -(read @ weight.T).mean(0)


MODELS = ("rnnt", "compressed rnnt", "compressed stateless", "ctc")


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    """In loudness and colour that change, so that labels do."""
    drawn = 0.1 * torch.randn(samples + 1, generator=torch.Generator().manual_seed(seed))
    swell = torch.linspace(0, samples / 1500, samples).sin()
    return (drawn[1:] + swell * drawn[:-1]) * (1.1 + swell.roll(700))


def whole(heard_by: Recogniser, samples: torch.Tensor, lookahead: int) -> Hypothesis:
    batch = Batch(samples[None], torch.tensor([len(samples)]), (), RATE)
    ((found,),) = hypotheses(heard_by.model, heard_by.extractor, batch, Decoding(lookahead=lookahead))
    return found


def pushed(stream: Stream, samples: torch.Tensor, push: int) -> list[Heard]:
    return [stream.push(samples[i : i + push]) for i in range(0, len(samples), push)]


@pytest.mark.parametrize(("samples", "push"), [(24_000, 320), (23_999, 1), (37_123, 4001), (1279, 777), (159, 50)])
def test_features_of_chunks_are_those_of_the_whole_utterance(samples: int, push: int) -> None:
    extractor = NemotronAsrStreamingFeatureExtractor(feature_size=32)
    clip = noise(samples)[: 1000 * push]
    made = extractor(clip.numpy(), sampling_rate=RATE, return_tensors="pt")
    expected = made["input_features"][0, : int(made["attention_mask"].sum())]
    stream = FeatureStream(extractor)
    found = [stream.push(clip[i : i + push]) for i in range(0, len(clip), push)]
    torch.testing.assert_close(torch.cat([*found, stream.finish()]), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("preemphasis", [0.97, None])
def test_features_are_those_of_other_windows_too(preemphasis: float | None) -> None:
    extractor = NemotronAsrStreamingFeatureExtractor(40, win_length=511, hop_length=128, preemphasis=preemphasis)
    clip = noise(5000)
    made = extractor(clip.numpy(), sampling_rate=RATE, return_tensors="pt")
    expected = made["input_features"][0, : int(made["attention_mask"].sum())]
    stream = FeatureStream(extractor)
    found = [stream.push(clip[i : i + 333]) for i in range(0, len(clip), 333)]
    torch.testing.assert_close(torch.cat([*found, stream.finish()]), expected, rtol=0, atol=1e-5)


def test_a_feature_comes_when_half_of_its_window_has() -> None:
    stream, clip = FeatureStream(NemotronAsrStreamingFeatureExtractor(32)), noise(2000)
    counts = [
        sum(len(stream.push(clip[i : i + 1])) for i in range(first, first + 200)) for first in range(0, 2000, 200)
    ]
    assert np.cumsum(counts).tolist() == [max(0, (end - 200) // 160 + 1) for end in range(200, 2001, 200)]


@pytest.mark.parametrize("lookahead", [0, 1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_a_stream_finds_the_tokens_of_the_whole_utterance(name: str, lookahead: int) -> None:
    heard_by, labels = recogniser(name), set()
    for samples, push in [(48_000, 320), (36_001, 1281), (29_999, 7777), (28_160, 28_160), (9000, 9001)]:
        clip = noise(samples, seed=samples)
        expected = whole(heard_by, clip, lookahead)
        stream = Stream(heard_by, Decoding(lookahead=lookahead))
        pushed(stream, clip, push)
        last = stream.finish()
        labels |= set(expected.tokens)
        assert stream.ids == list(expected.tokens)
        assert last.text == heard_by.tokens.decode(expected.tokens)
        assert last.words == timed_words(heard_by.tokens, expected, 0.08)
        assert last.score == pytest.approx(expected.score, rel=1e-4)
        assert stream.frames == int(family_of(heard_by.model).frame_lengths(heard_by.model, torch.tensor([samples])))
        assert (last.final, last.seconds) == (True, samples / RATE)
    assert len(labels) > 4


def test_every_number_of_features_left_at_the_end_is_flushed_as_the_whole_utterance_has_it() -> None:
    heard_by = recogniser("rnnt")
    for features in range(40, 57):
        clip = noise(160 * features + 37)
        stream = Stream(heard_by, Decoding(lookahead=1))
        stream.push(clip)
        stream.finish()
        assert stream.ids == list(whole(heard_by, clip, 1).tokens)
        assert stream.score == pytest.approx(whole(heard_by, clip, 1).score, rel=1e-4)


@pytest.mark.parametrize("lookahead", [0, 1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_a_partial_has_every_token_that_no_future_can_change_and_no_other(name: str, lookahead: int) -> None:
    heard_by = recogniser(name)
    stream, clip = Stream(heard_by, Decoding(lookahead=lookahead)), noise(40_000)
    futures = [torch.cat([clip[:24_000], noise(16_000, seed)]) for seed in (1, 2, 3)]
    found = [whole(heard_by, future, lookahead) for future in futures]
    pushed(stream, clip[:24_000], 500)
    chunk = 1280 * (lookahead + 1)
    # A chunk ends with feature 8 f of its last frame f, and that with the sample 160 * 8 f + 200.
    complete = (lookahead + 1) * ((24_000 - 200 + 1280) // chunk)
    assert stream.frames == complete
    for one in found:
        assert stream.ids == [token for token, frame in zip(one.tokens, one.frames, strict=True) if frame < complete]
    assert len({one.tokens for one in found}) == 3


@pytest.mark.parametrize(("lookahead", "push"), [(0, 320), (0, 2000), (1, 2560), (1, 1000), (3, 320), (3, 8000)])
def test_latency_is_the_longest_that_a_sound_waits_for_its_frame(lookahead: int, push: int) -> None:
    stream = Stream(recogniser("ctc"), Decoding(lookahead=lookahead))
    waits, known = [], 0
    for i in range(math.lcm(push, 1280 * (lookahead + 1)) // push + 1):  # until pushes and chunks end together
        stream.push(torch.zeros(push))
        # The sound of frame f begins half a hop before the first of its eight features, of which the last is 8 f.
        waits += [(i + 1) * push - (160 * (8 * frame - 7) - 80) for frame in range(known, stream.frames)]
        known = stream.frames
    assert max(waits) == latency(stream, push)


def test_what_a_file_costs_is_counted_by_the_chunks_of_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(recogniser("rnnt"), Decoding(lookahead=1))
    ticks = iter(range(1000))
    monkeypatch.setattr("diminuendo.evaluation.streaming.time.perf_counter", lambda: float(next(ticks)))
    told: list[Heard] = []
    last, cost = hear(stream, noise(24_000), 800, told.append)
    texts = [one.text for one in told[:-1]]
    assert told[-1] is last
    assert all(first != second for first, second in pairwise(texts))
    assert all(last.text.startswith(text) for text in texts)
    assert (cost.lookahead_ms, cost.chunk_ms) == (80, 50)
    assert cost.algorithmic_latency_ms == latency(stream, 800) / 16
    assert cost.compute_ms == {"p50": 1000, "p95": 1000}
    assert cost.chunks == 10  # 19 frames
    assert cost.real_time_factor == pytest.approx(31 / 1.5)  # 30 pushes and the end, a second each


@pytest.mark.parametrize("kind", ["characters", "words", "pieces"])
def test_words_are_those_of_decoding_all_tokens_so_far_anew(kind: Any) -> None:
    text = "the cat sat on the mat that a cat has"
    tokens = Tokens.of(make_tokenizer(kind, [text], 20 if kind == "pieces" else None))
    ids, words = tokens.encode(text), TimedWords(tokens, 0.5)
    for i, token in enumerate(ids):
        words.add(token, i)
        assert [word for word, _ in words.found] == tokens.decode(ids[: i + 1]).split()
    starts = [len(tokens.decode(ids[: i + 1]).split()) > len(tokens.decode(ids[:i]).split()) for i in range(len(ids))]
    assert [second for _, second in words.found] == [0.5 * i for i, start in enumerate(starts) if start]


@pytest.mark.parametrize("wrong", [np.zeros((2, 320), np.float32), np.zeros(320, np.int16)])
def test_samples_of_another_kind_are_refused(wrong: Any) -> None:
    with pytest.raises(UserError, match="expected one channel of floats"):
        Stream(recogniser("rnnt")).push(wrong)


def test_nothing_can_follow_the_end() -> None:
    stream = Stream(recogniser("rnnt"))
    assert stream.push(np.zeros(100)).text == stream.finish().text == ""
    for call in (stream.finish, lambda: stream.push(np.zeros(100))):
        with pytest.raises(UserError, match="has been finished"):
            call()


def test_an_extractor_that_norms_whole_clips_is_refused() -> None:
    one = recogniser("rnnt")
    with pytest.raises(UserError, match="a ParakeetFeatureExtractor; streaming needs one that norms nothing"):
        Stream(Recogniser(one.model, ParakeetFeatureExtractor(32), one.tokens))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`streaming` and `whole`, which cannot, as saved; and two files of noise."""
    folder = tmp_path_factory.mktemp("models")
    streaming, parakeet = tiny_model("nemotron", "rnnt"), tiny_model("parakeet", "ctc")
    for model, name in ((streaming, "streaming"), (parakeet, "whole")):
        save(model, extractor_of(model), folder / name)
        save_tokens(TOKENIZER, folder / name)
    for name, samples in (("a.wav", 24_001), ("b.wav", 30_000)):
        soundfile.write(folder / name, noise(samples).numpy(), RATE, subtype="FLOAT")
    return folder


def test_streaming_from_python_gives_what_whole_files_give_and_what_it_costs(models: Path) -> None:
    files = [models / "a.wav", models / "b.wav"]
    expected = api.transcribe(models / "streaming", files, lookahead=80, device="cpu")
    told: list[tuple[str, str]] = []
    found = api.transcribe(
        models / "streaming",
        files,
        lookahead=80,
        streaming=True,
        chunk_ms=30,
        tell=lambda audio, heard: told.append((audio, heard.text)),
        device="cpu",
    )
    costs = [one.pop("streaming") for one in found]
    assert [(one["text"], one["words"]) for one in found] == [(one["text"], one["words"]) for one in expected]
    assert dict(told) == {one["audio"]: one["text"] for one in expected}
    assert len(told) > 6
    assert [(cost["lookahead_ms"], cost["chunk_ms"]) for cost in costs] == [(80, 30), (80, 30)]
    utterance = api.stream(models / "streaming", lookahead=80, device="cpu")
    samples = soundfile.read(files[0], dtype="float32")[0]
    assert utterance.push(samples[:20_000]).text in expected[0]["text"]
    utterance.push(samples[20_000:])
    assert utterance.finish().text == expected[0]["text"]


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    return run_command(capsys, monkeypatch, "transcribe", *arguments)


def run_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["diminuendo", *map(str, words)])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    out, err = capsys.readouterr()
    return int(exited.value.code or 0), out, err


def test_the_command_line_prints_partials_beside_the_text(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [models / "streaming", models / "a.wav", "--streaming", "--lookahead", 80, "--device", "cpu"]
    status, printed, err = run(capsys, monkeypatch, *arguments)
    text, cost = printed.splitlines()
    partials = err.splitlines()
    assert status == 0
    assert text.startswith(f"{models / 'a.wav'}: ")
    assert cost.startswith("    latency 235.0 ms (lookahead 80 ms, audio in chunks of 160 ms) and computing: ")
    assert len(partials) > 3
    assert partials[0].startswith(f"{models / 'a.wav'} 0.16 s  ")
    assert partials[-1] == f"{models / 'a.wav'} 1.50 s  {text.removeprefix(str(models / 'a.wav') + ': ')}"
    status, printed, err = run(capsys, monkeypatch, *arguments, "--json", "--quiet")
    (found,) = json.loads(printed)["transcripts"]
    assert (status, err) == (0, "")
    assert f"{found['audio']}: {found['text']}" == text
    expected = {"lookahead_ms": 80, "chunk_ms": 160, "algorithmic_latency_ms": 235, "chunks": 10}
    assert expected.items() <= found["streaming"].items()
    assert {*found["streaming"]} - {*expected} == {"compute_ms", "real_time_factor"}


def test_word_errors_come_for_each_lookahead(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"audio_filepath": "a.wav", "duration": 24_001 / RATE, "text": "abc", "speaker": "one"}
    (models / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    given = ["evaluate", models / "streaming", models / "manifest.jsonl", "--device", "cpu", "--quiet"]
    several = ["--lookahead", 0, "--lookahead", 400]
    status, printed, _ = run_command(capsys, monkeypatch, *given, *several, "--json")
    found = json.loads(printed)["lookaheads"]
    assert status == 0
    alone = [run_command(capsys, monkeypatch, *given, "--lookahead", ms, "--json")[1] for ms in (0, 400)]
    assert list(found.items()) == list(zip(["0", "400"], map(json.loads, alone), strict=True))
    lines = run_command(capsys, monkeypatch, *given, *several)[1].splitlines()
    assert [line.partition(" WER")[0] for line in lines[::2]] == ["0 ms:", "400 ms:"]


def test_on_a_terminal_one_line_is_written_anew_with_the_end_of_the_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for text, final in (("one", False), ("one two three four", False), ("\u4e00" * 9, True)):
        print_heard("a.wav", Heard(text, (), 0.0, 1.5, final))
    assert capsys.readouterr().err == (
        "\r\x1b[Ka.wav 1.50 s  one\r\x1b[Ka.wav 1.50 s  hree four\r\x1b[Ka.wav 1.50 s  " + "\u4e00" * 4 + "\n"
    )


@pytest.mark.parametrize(("model", "streaming"), [("streaming", True), ("streaming", False), ("whole", False)])
@pytest.mark.parametrize("samples", [0, 800, 24_000])
def test_nothing_is_heard_in_silence(
    samples: int, model: str, streaming: bool, models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soundfile.write(tmp_path / "silence.wav", torch.zeros(samples).numpy(), RATE)
    with caplog.at_level(logging.WARNING):
        (alone,) = api.transcribe(models / model, [tmp_path / "silence.wav"], streaming=streaming, device="cpu")
    assert (alone["text"], alone["words"], alone["others"]) == ("", (), ())
    assert [record.message.partition(" nothing")[2] for record in caplog.records] == [" is heard in it"]
    files = [tmp_path / "silence.wav", models / "a.wav"]
    found = api.transcribe(models / model, files, streaming=streaming, device="cpu")
    (heard,) = api.transcribe(models / model, [models / "a.wav"], streaming=streaming, device="cpu")
    assert found[0] == alone
    assert found[1]["text"] == heard["text"]


@pytest.mark.parametrize(
    ("model", "flags", "says"),
    [
        ("whole", ["--streaming"], "--streaming: MODEL is no streaming model (ParakeetForCTC)"),
        ("streaming", ["--streaming", "--beam", "4"], "leave --beam and --n-best out"),
        ("streaming", ["--streaming", "--n-best", "2"], "leave --beam and --n-best out"),
        ("streaming", ["--streaming", "--chunk-ms", "0"], "--chunk-ms 0: expected"),
        ("streaming", ["--streaming", "--lookahead", "50"], "expected a multiple of 80 ms"),
        ("streaming", ["--chunk-ms", "20"], "give --streaming too"),
        ("streaming", ["--streaming", "gone.wav"], "error: gone.wav: no such file; expected audio files"),
        ("whole", ["gone.wav", "gone too.wav"], "error: gone.wav: no such file (and 1 more of 3 files)"),
        ("whole", [__file__], "test_streaming.py: no audio that can be read"),
    ],
)
def test_wrong_input_gets_one_line_and_status_2(
    model: str,
    flags: list[str],
    says: str,
    models: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status, printed, err = run(capsys, monkeypatch, models / model, models / "a.wav", *flags, "--device", "cpu")
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (status, printed, len(lines)) == (2, "", 1)
    assert says in lines[0]
