"""Streaming: what is found while audio comes is what is found in all of it, and nothing is heard before its time."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from transformers import NemotronAsrStreamingFeatureExtractor, ParakeetFeatureExtractor

from conformance.test_removal import gated_and_removed
from diminuendo.data.batching import Batch
from diminuendo.data.tokens import Tokens, make_tokenizer
from diminuendo.errors import UserError
from diminuendo.evaluation.streaming import Heard, Stream, hear, latency
from diminuendo.evaluation.transcripts import (
    Decoding,
    Recogniser,
    TimedWords,
    hypotheses,
    timed_words,
)
from diminuendo.families import family_of, model_inputs
from diminuendo.families.recogniser import with_head
from diminuendo.families.streaming import FeatureStream
from diminuendo.tasks.hypotheses import Hypothesis
from tiny import extractor_of, tiny_transducer

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
