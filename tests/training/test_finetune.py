"""A recogniser trained on what clips say: it learns, resumes, and refuses what it cannot be trained on."""

import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Wav2Vec2FeatureExtractor

import diminuendo
from diminuendo import api, cli
from diminuendo.data.manifest import read_cuts
from diminuendo.data.tokens import make_tokenizer, save_tokens
from diminuendo.errors import Interrupted, UserError
from diminuendo.export.huggingface import save
from diminuendo.families import family_of
from diminuendo.given import source_of
from diminuendo.modules.transducer import StatelessDecoder
from diminuendo.training.configurations import read_configuration
from diminuendo.training.finetune_config import FinetuneConfig
from diminuendo.training.own_prediction import encoder_of, extractor_of
from diminuendo.training.recogniser import pupil_of
from spoken import spoken_corpus
from tiny import QUIET, interrupt, tiny_model, weights

TEXTS = ["ba", "du", "ki", "ba du", "du ki", "ki ba", "ba ki du", "ki du ba", "du", "ba", "ki ki", "du ba"]
SETTINGS: dict[str, Any] = {"loop": QUIET, "steps": 8, "seconds_per_batch": 6.0, "tokens": "words"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spoken_corpus(tmp_path_factory.mktemp("spoken"), TEXTS)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("encoders")
    names = ("parakeet", "nemotron", "hubert")
    for name in names:
        torch.manual_seed(0)
        config = read_configuration(f"micro-{name}")
        save(encoder_of(config), extractor_of(config), folder / name)
    return {name: folder / name for name in names}


@pytest.fixture(scope="module")
def learned(encoders: dict[str, Path], corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A recogniser that has been trained for long enough to tell tones apart."""
    folder = tmp_path_factory.mktemp("learned")

    def train(task: str) -> Path:
        settings = SETTINGS | {"steps": 250 if task == "ctc" else 400, "augment": False, "resume": True}
        rates = {"head_learning_rate": 2e-2, "learning_rate": 5e-3}
        api.finetune(encoders["parakeet"], corpus, folder / task, task=task, predictor_width=16, **settings, **rates)
        return folder / task

    return train


@pytest.mark.parametrize("task", ["ctc", pytest.param("ctc+rnnt", marks=pytest.mark.slow)])
def test_a_recogniser_learns_what_tones_mean(task: str, learned: Callable[[str], Path], corpus: Path) -> None:
    heard = api.evaluate(learned(task), corpus)
    assert heard["wer"] < 0.3
    assert heard["words"] == sum(len(text.split()) for text in TEXTS)
    model = diminuendo.load(learned(task))
    assert family_of(model).task_of(model) == ("ctc" if task == "ctc" else "rnnt")
    assert sorted(AutoTokenizer.from_pretrained(learned(task)).get_vocab()) == ["<blank>", "▁ba", "▁du", "▁ki"]
    result = json.loads((learned(task) / "result.json").read_text())
    assert (result["task"], result["tokens"], result["new_head"]) == (task, 3, True)
    assert result["loss"] < 0.5


def test_an_encoder_that_reads_waveforms_becomes_a_transducer_and_the_same_by_the_same_seed(
    encoders: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    for out in ("one", "same"):  # without masks of ours none of transformers' own, whose generator nobody seeds
        np.random.seed(len(out))
        api.finetune(encoders["hubert"], corpus, tmp_path / out, task="rnnt", **{**SETTINGS, "augment": False})
    assert weights(tmp_path / "one") == weights(tmp_path / "same")
    result = api.finetune(encoders["hubert"], corpus, tmp_path / "asr", task="rnnt", **SETTINGS)
    assert result["task"] == "rnnt"
    assert api.evaluate(tmp_path / "asr", corpus)["words"] == sum(len(text.split()) for text in TEXTS)


def test_a_named_configuration_is_trained_from_fresh_weights_of_the_seed(corpus: Path, tmp_path: Path) -> None:
    for out, seed in (("one", 0), ("same", 0), ("other", 1)):
        api.finetune("micro-parakeet", corpus, tmp_path / out, task="ctc", seed=seed, **{**SETTINGS, "steps": 2})
    assert weights(tmp_path / "one") == weights(tmp_path / "same") != weights(tmp_path / "other")


def test_an_own_recogniser_is_trained_on_with_its_tokens(
    encoders: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    api.finetune(encoders["parakeet"], corpus, tmp_path / "once", task="rnnt", **SETTINGS)
    assert str(encoders["parakeet"].parent) not in (tmp_path / "once" / "config.json").read_text()  # nobody's business
    on = {**SETTINGS, "tokens": None}
    again = api.finetune(tmp_path / "once", corpus, tmp_path / "twice", **on)
    assert (again["task"], again["new_head"], again["tokens"]) == ("rnnt", False, 3)
    other = api.finetune(tmp_path / "once", corpus, tmp_path / "ctc", task="ctc", **on)
    assert (other["task"], other["new_head"], other["tokens"]) == ("ctc", True, 3)


def test_a_stopped_run_resumes_to_the_same_weights(
    encoders: dict[str, Path], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SETTINGS, "augment_from": 0.3, "lookaheads": (0, 1, 6), "speeds": (0.9, 1.1)}
    api.finetune(encoders["nemotron"], corpus, tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        interrupt(patch, 5)
        with pytest.raises(Interrupted):
            api.finetune(encoders["nemotron"], corpus, tmp_path / "parts", **settings)
    api.finetune(encoders["nemotron"], corpus, tmp_path / "parts", resume=True, **settings)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_a_tdt_recogniser_is_trained_and_decoded(encoders: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    result = api.finetune(encoders["parakeet"], corpus, tmp_path / "asr", task="tdt", **SETTINGS)
    assert result["task"] == "tdt"
    assert api.evaluate(tmp_path / "asr", corpus)["clips"] == len(TEXTS)
    with pytest.raises(UserError, match="TDT is decoded greedily"):
        api.evaluate(tmp_path / "asr", corpus, beam=4)


def test_a_flat_start_without_ctc_is_refused(encoders: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    said = refused(encoders["parakeet"], corpus, tmp_path / "out", task="rnnt", flat_start=0.5)
    assert "has no CTC to start with" in said
    whole = {**SETTINGS, "flat_start": 1.0, "augment": False}
    api.finetune(encoders["parakeet"], corpus, tmp_path / "flat", task="ctc+rnnt", **whole)
    lines = list(map(json.loads, (tmp_path / "flat" / "log.jsonl").read_text().splitlines()))
    assert ["rnnt" in line for line in lines] == [False] * 6 + [True] * 2


def test_training_leaves_the_model_that_was_given_as_it_is(
    encoders: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    api.finetune(encoders["parakeet"], corpus, tmp_path / "asr", **SETTINGS)
    model = diminuendo.load(tmp_path / "asr")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    api.finetune(model, corpus, tmp_path / "again", **{**SETTINGS, "tokens": None})
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def refused(model: Path, data: Path, out: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        api.finetune(model, data, out, **{**SETTINGS, **settings})
    assert not out.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_recogniser_with_a_stateless_predictor_learns_decodes_and_streams(
    encoders: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    settings = {**SETTINGS, "task": "ctc+rnnt", "predictor": "stateless", "predictor_width": 16}
    api.finetune(encoders["nemotron"], corpus, tmp_path / "asr", **settings)
    model = diminuendo.load(tmp_path / "asr")
    assert isinstance(model.decoder, StatelessDecoder)
    lines = list(map(json.loads, (tmp_path / "asr" / "log.jsonl").read_text().splitlines()))
    assert lines[-1]["rnnt"] < lines[0]["rnnt"]
    for beam in (1, 4):
        assert api.evaluate(tmp_path / "asr", corpus, beam=beam)["words"] == sum(len(text.split()) for text in TEXTS)
    files = [corpus.parent / "6.wav"]
    (whole,), (streamed,) = (api.transcribe(tmp_path / "asr", files, streaming=way) for way in (False, True))
    assert streamed["text"] == whole["text"]
    on = api.finetune(tmp_path / "asr", corpus, tmp_path / "on", **{**SETTINGS, "tokens": None, "steps": 2})
    assert on["new_head"] is False
    assert isinstance(diminuendo.load(tmp_path / "on").decoder, StatelessDecoder)
    kept = {"predictor": "stateless", "tokens": None}
    assert "keeps its head, by rnnt; give an encoder" in refused(tmp_path / "asr", corpus, tmp_path / "out", **kept)


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
    settings: dict[str, Any], says: str, encoders: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    assert re.search(says, refused(encoders["parakeet"], corpus, tmp_path / "out", task="ctc", **settings))
    with pytest.raises(UserError, match=says) as caught:
        api.compress_to_result(encoders["parakeet"], corpus, tmp_path / "out", task="ctc", **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_clips_without_text_are_refused(encoders: dict[str, Path], tmp_path: Path) -> None:
    none = spoken_corpus(tmp_path / "none", [None, None])
    assert "DATA has no texts" in refused(encoders["parakeet"], none, tmp_path / "out")
    some = spoken_corpus(tmp_path / "some", ["ba", None])
    assert "1 of 2 clips have no text" in refused(encoders["parakeet"], some, tmp_path / "out")


def test_labels_that_the_tokens_lack_are_named_and_refused_above_one_in_a_hundred(
    encoders: dict[str, Path], corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api.finetune(encoders["parakeet"], corpus, tmp_path / "asr", **SETTINGS)
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


def test_more_labels_than_frames_are_refused_for_ctc_and_not_for_a_transducer(
    encoders: dict[str, Path], tmp_path: Path
) -> None:
    data = spoken_corpus(tmp_path / "data", ["abababababab", "du"])
    letters = {"tokens": "characters"}
    assert "more labels than frames" in refused(encoders["parakeet"], data, tmp_path / "out", task="ctc", **letters)
    api.finetune(encoders["parakeet"], data, tmp_path / "out", task="rnnt", **{**SETTINGS, **letters})


def test_of_a_set_that_is_not_in_memory_clips_are_counted_as_they_are_met(
    encoders: dict[str, Path], corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "shar").mkdir()
    read_cuts(corpus, None).to_shar(tmp_path / "shar", fields={"recording": "flac"}, shard_size=4)
    with caplog.at_level(logging.WARNING):
        result = api.finetune(encoders["parakeet"], tmp_path / "shar", tmp_path / "asr", max_seconds=1.0, **SETTINGS)
    assert result["left_out"] == "2 clips left out: longer than 1 s"
    assert [m for m in caplog.messages if "left out" in m] == [f"{n} clips left out: longer than 1 s" for n in (1, 2)]


def test_clips_that_are_too_long_are_left_out_and_counted(
    encoders: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    result = api.finetune(encoders["parakeet"], corpus, tmp_path / "asr", max_seconds=1.0, **SETTINGS)
    assert result["left_out"] == "2 clips left out: longer than 1 s"
    assert "all 12 clips are longer than 0.2 s" in refused(
        encoders["parakeet"], corpus, tmp_path / "o", max_seconds=0.2
    )


def test_lookaheads_of_a_model_that_does_not_stream_are_refused(
    encoders: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    assert "no streaming model" in refused(encoders["parakeet"], corpus, tmp_path / "out", lookaheads=(0,))
    api.finetune(encoders["parakeet"], corpus, tmp_path / "asr", **SETTINGS)
    with pytest.raises(UserError, match="no streaming model"):
        api.evaluate(tmp_path / "asr", corpus, lookahead=80)


def test_a_tokenizer_of_another_model_is_refused(encoders: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    api.finetune(encoders["parakeet"], corpus, tmp_path / "asr", **SETTINGS)
    letters = {**SETTINGS, "tokens": "characters"}
    api.finetune(encoders["parakeet"], corpus, tmp_path / "letters", **letters)
    (tmp_path / "asr" / "tokenizer.json").write_bytes((tmp_path / "letters" / "tokenizer.json").read_bytes())
    assert "vocab_size is 4" in refused(tmp_path / "asr", corpus, tmp_path / "out", tokens=None)


def test_a_smaller_tokenizer_of_another_model_is_refused(
    encoders: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    """All its labels are some of the model's."""
    api.finetune(encoders["parakeet"], corpus, tmp_path / "asr", **SETTINGS)
    save_tokens(make_tokenizer("words", ["ba du"]), tmp_path / "asr")
    message = "its blank is 3, but that of its tokenizer is 2"
    assert message in refused(tmp_path / "asr", corpus, tmp_path / "out", tokens=None)
    with pytest.raises(UserError, match=message):
        api.transcribe(tmp_path / "asr", [corpus.parent / "0.wav"])


def test_a_new_transducer_is_as_wide_as_the_encoder(encoders: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    for given, width in ({}, 16), ({"predictor_width": 8}, 8):
        source = source_of(encoders["parakeet"])
        config = FinetuneConfig(task="rnnt", tokens="words", **given)
        assert pupil_of(source, read_cuts(corpus, None), config).model.config.decoder_hidden_size == width
    api.finetune(encoders["parakeet"], corpus, tmp_path / "asr", **SETTINGS)
    assert json.loads((tmp_path / "asr" / "run.json").read_text())["config"]["predictor_width"] == 16


def test_words_that_are_heard_in_a_clip_of_an_empty_text_are_wrong(
    learned: Callable[[str], Path], corpus: Path, tmp_path: Path
) -> None:
    data = spoken_corpus(tmp_path / "data", ["ba ki du", "ba ki du"])
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[1]["text"] = ""
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    heard = api.evaluate(learned("ctc"), data)
    assert (heard["words"], heard["insertions"], heard["wer"]) == (3, 3, 1.0)


def test_an_encoder_with_an_adapter_is_refused(corpus: Path, tmp_path: Path) -> None:
    model = tiny_model("wav2vec2", "base", add_adapter=True)
    save(model, Wav2Vec2FeatureExtractor(do_normalize=True), tmp_path / "adapted")
    assert "has an adapter behind its encoder" in refused(tmp_path / "adapted", corpus, tmp_path / "out")


def test_flags_of_word_error_rates_are_refused_for_an_encoder(teacher_folder: Path, corpus: Path) -> None:
    for flags in ({"beam": 4}, {"against": teacher_folder}, {"lookahead": 80}, {"split": "dev"}):
        with pytest.raises(UserError, match="is for word error rates: MODEL is an encoder"):
            api.evaluate(teacher_folder, corpus, **flags)


def test_a_second_recogniser_that_is_none_and_more_texts_than_a_beam_has_are_refused(
    encoders: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    api.finetune(encoders["parakeet"], corpus, tmp_path / "asr", **SETTINGS)
    with pytest.raises(UserError, match=r"--against .* is an encoder"):
        api.evaluate(tmp_path / "asr", corpus, against=encoders["parakeet"])
    with pytest.raises(UserError, match="a beam of 1 has fewer"):
        api.transcribe(tmp_path / "asr", [corpus.parent / "0.wav"], n_best=3)


def test_an_encoder_writes_no_text(teacher_folder: Path, corpus: Path) -> None:
    with pytest.raises(UserError, match=r"is an encoder .* finetune"):
        api.transcribe(teacher_folder, [corpus.parent / "0.wav"])


def test_transcripts_have_words_with_their_times(learned: Callable[[str], Path], corpus: Path) -> None:
    (one,) = api.transcribe(learned("ctc"), [corpus.parent / "6.wav"], beam=4, n_best=3)
    assert one["text"] == "ba ki du"
    assert [word for word, _ in one["words"]] == ["ba", "ki", "du"]
    starts = [second for _, second in one["words"]]
    assert all(abs(start - (0.26 + 0.42 * i)) < 0.25 for i, start in enumerate(starts)), starts
    assert one["score"] > max(score for _, score in one["others"])


def test_the_command_line_trains_evaluates_and_transcribes(
    encoders: dict[str, Path],
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["diminuendo", *map(str, words)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        return int(str(exit.value.code)), *capsys.readouterr()

    settings = ("--steps", 4, "--seconds-per-batch", 6, "--device", "cpu", "--json", "--quiet")
    status, printed, _ = run(
        "finetune", encoders["parakeet"], corpus, "--out", tmp_path / "asr", "--task", "ctc", *settings
    )
    assert status == 0
    assert json.loads(printed)["task"] == "ctc"
    status, printed, _ = run("evaluate", tmp_path / "asr", corpus, "--against", tmp_path / "asr", "--json", "--quiet")
    assert status == 0
    found = json.loads(printed)
    assert found["second"]["difference"] == 0
    assert {"wer", "wer_low", "wer_high", "cer", "words", "seconds"} <= found.keys()
    _, printed, _ = run("evaluate", tmp_path / "asr", corpus, "--quiet")
    assert printed.startswith(f"WER {found['wer']:.2%}")
    status, printed, _ = run("transcribe", tmp_path / "asr", corpus.parent / "0.wav", corpus.parent / "1.wav")
    assert status == 0
    assert printed.count(".wav: ") == 2
    for missing in ([], [corpus.parent / "0.wav"]):
        status, _, said = run("transcribe", tmp_path / "asr", tmp_path / "nothing.wav", *missing)
        assert status == 2
        assert said.startswith(f"error: {tmp_path / 'nothing.wav'}: no such file; expected audio files")
        assert said.count("\n") == 1
