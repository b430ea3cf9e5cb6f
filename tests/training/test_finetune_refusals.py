"""What a recogniser cannot be trained on, or be asked for: each in one line."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import Wav2Vec2FeatureExtractor

from diminuendo import api
from diminuendo.data.manifest import read_cuts
from diminuendo.data.tokens import make_tokenizer, save_tokens
from diminuendo.errors import UserError
from diminuendo.export.huggingface import save
from spoken import spoken_corpus
from tiny import QUIET, micro_encoder, tiny_model

TEXTS = ["ba", "du", "ki", "ba du", "du ki", "ki ba", "ba ki du", "ki du ba", "du", "ba", "ki ki", "du ba"]
SETTINGS: dict[str, Any] = {"loop": QUIET, "steps": 8, "seconds_per_batch": 6.0, "tokens": "words"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spoken_corpus(tmp_path_factory.mktemp("spoken"), TEXTS)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_encoder("parakeet", tmp_path_factory.mktemp("encoder"))


def refused(model: Path, data: Path, out: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        api.finetune(model, data, out, **{**SETTINGS, **settings})
    assert not out.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"speeds": ()}, r"speeds \(\): expected some from 0.5 to 2"),
        ({"speeds": (1.0, 0.4)}, r"speeds \(1.0, 0.4\): expected some"),
        ({"speeds": (float("nan"),)}, "expected some from 0.5 to 2"),
        ({"augment_strength": 0.0}, r"augment_strength must lie in \(0, 1\], got 0.0"),
        ({"augment_strength": 1.5}, "got 1.5"),
        ({"predictor": "gru"}, "predictor gru: expected one of lstm, stateless"),
        ({"predictor": "stateless"}, "predictor stateless: --task ctc has no predictor; give --task rnnt"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(
    settings: dict[str, Any], says: str, encoder: Path, corpus: Path, tmp_path: Path
) -> None:
    assert re.search(says, refused(encoder, corpus, tmp_path / "out", task="ctc", **settings))
    with pytest.raises(UserError, match=says) as caught:
        api.compress_to_result(encoder, corpus, tmp_path / "out", task="ctc", **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_clips_without_text_are_refused(encoder: Path, tmp_path: Path) -> None:
    none = spoken_corpus(tmp_path / "none", [None, None])
    assert "DATA has no texts" in refused(encoder, none, tmp_path / "out")
    some = spoken_corpus(tmp_path / "some", ["ba", None])
    assert "1 of 2 clips have no text" in refused(encoder, some, tmp_path / "out")


def test_labels_that_the_tokens_lack_are_named_and_refused_above_one_in_a_hundred(
    encoder: Path, corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api.finetune(encoder, corpus, tmp_path / "asr", **SETTINGS)
    other = spoken_corpus(tmp_path / "other", ["ba", "du zo"])
    said = refused(tmp_path / "asr", other, tmp_path / "out", tokens=None)
    assert "'zo' (1)" in said
    assert "1 of 2" in said
    mostly = spoken_corpus(tmp_path / "mostly", ["ba"] * 120 + ["zo"])
    with caplog.at_level(logging.WARNING):
        api.finetune(tmp_path / "asr", mostly, tmp_path / "out", **{**SETTINGS, "tokens": None})
    assert "1 of 121 clips" in caplog.text
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["left_out"] == "1 clips left out: no text, or one that the tokens cannot write"


def test_more_labels_than_frames_are_refused_for_ctc_and_not_for_a_transducer(encoder: Path, tmp_path: Path) -> None:
    data = spoken_corpus(tmp_path / "data", ["abababababab", "du"])
    letters = {"tokens": "characters"}
    assert "more labels than frames" in refused(encoder, data, tmp_path / "out", task="ctc", **letters)
    api.finetune(encoder, data, tmp_path / "out", task="rnnt", **{**SETTINGS, **letters})


def test_of_a_set_that_is_not_in_memory_clips_are_counted_as_they_are_met(
    encoder: Path, corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "shar").mkdir()
    read_cuts(corpus, None).to_shar(tmp_path / "shar", fields={"recording": "flac"}, shard_size=4)
    with caplog.at_level(logging.WARNING):
        result = api.finetune(encoder, tmp_path / "shar", tmp_path / "asr", max_seconds=1.0, **SETTINGS)
    assert result["left_out"] == "2 clips left out: longer than 1 s"
    assert [m for m in caplog.messages if "left out" in m] == [f"{n} clips left out: longer than 1 s" for n in (1, 2)]


def test_clips_that_are_too_long_are_left_out_and_counted(encoder: Path, corpus: Path, tmp_path: Path) -> None:
    result = api.finetune(encoder, corpus, tmp_path / "asr", max_seconds=1.0, **SETTINGS)
    assert result["left_out"] == "2 clips left out: longer than 1 s"
    assert "all 12 clips are longer than 0.2 s" in refused(encoder, corpus, tmp_path / "o", max_seconds=0.2)


def test_lookaheads_of_a_model_that_does_not_stream_are_refused(encoder: Path, corpus: Path, tmp_path: Path) -> None:
    assert "no streaming model" in refused(encoder, corpus, tmp_path / "out", lookaheads=(0,))
    api.finetune(encoder, corpus, tmp_path / "asr", **SETTINGS)
    with pytest.raises(UserError, match="no streaming model"):
        api.evaluate(tmp_path / "asr", corpus, lookahead=80)


def test_a_tokenizer_of_another_model_is_refused(encoder: Path, corpus: Path, tmp_path: Path) -> None:
    api.finetune(encoder, corpus, tmp_path / "asr", **SETTINGS)
    letters = {**SETTINGS, "tokens": "characters"}
    api.finetune(encoder, corpus, tmp_path / "letters", **letters)
    (tmp_path / "asr" / "tokenizer.json").write_bytes((tmp_path / "letters" / "tokenizer.json").read_bytes())
    assert "vocab_size is 4" in refused(tmp_path / "asr", corpus, tmp_path / "out", tokens=None)


def test_a_smaller_tokenizer_of_another_model_is_refused(encoder: Path, corpus: Path, tmp_path: Path) -> None:
    """All its labels are some of the model's."""
    api.finetune(encoder, corpus, tmp_path / "asr", **SETTINGS)
    save_tokens(make_tokenizer("words", ["ba du"]), tmp_path / "asr")
    message = "its blank is 3, but that of its tokenizer is 2"
    assert message in refused(tmp_path / "asr", corpus, tmp_path / "out", tokens=None)
    with pytest.raises(UserError, match=message):
        api.transcribe(tmp_path / "asr", [corpus.parent / "0.wav"])


def test_an_encoder_with_an_adapter_is_refused(corpus: Path, tmp_path: Path) -> None:
    model = tiny_model("wav2vec2", "base", add_adapter=True)
    save(model, Wav2Vec2FeatureExtractor(do_normalize=True), tmp_path / "adapted")
    assert "has an adapter behind its encoder" in refused(tmp_path / "adapted", corpus, tmp_path / "out")


def test_flags_of_word_error_rates_are_refused_for_an_encoder(teacher_folder: Path, corpus: Path) -> None:
    for flags in ({"beam": 4}, {"against": teacher_folder}, {"lookahead": 80}, {"split": "dev"}):
        with pytest.raises(UserError, match="is for word error rates: MODEL is an encoder"):
            api.evaluate(teacher_folder, corpus, **flags)


def test_a_second_recogniser_that_is_none_and_more_texts_than_a_beam_has_are_refused(
    encoder: Path, corpus: Path, tmp_path: Path
) -> None:
    api.finetune(encoder, corpus, tmp_path / "asr", **SETTINGS)
    with pytest.raises(UserError, match=r"--against .* is an encoder"):
        api.evaluate(tmp_path / "asr", corpus, against=encoder)
    with pytest.raises(UserError, match="a beam of 1 has fewer"):
        api.transcribe(tmp_path / "asr", [corpus.parent / "0.wav"], n_best=3)


def test_an_encoder_writes_no_text(teacher_folder: Path, corpus: Path) -> None:
    with pytest.raises(UserError, match=r"is an encoder .* finetune"):
        api.transcribe(teacher_folder, [corpus.parent / "0.wav"])
