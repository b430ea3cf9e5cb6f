"""A recogniser trained on what clips say: it learns, resumes, and transcribes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

import diminuendo
from diminuendo import api, cli
from diminuendo.data.manifest import read_cuts
from diminuendo.errors import Interrupted, UserError
from diminuendo.families import family_of
from diminuendo.given import source_of
from diminuendo.modules.transducer import StatelessDecoder
from diminuendo.training.finetune_config import FinetuneConfig
from diminuendo.training.recogniser import pupil_of
from spoken import spoken_corpus
from tiny import QUIET, interrupt, micro_encoder, weights

TEXTS = ["ba", "du", "ki", "ba du", "du ki", "ki ba", "ba ki du", "ki du ba", "du", "ba", "ki ki", "du ba"]
SETTINGS: dict[str, Any] = {"loop": QUIET, "steps": 8, "seconds_per_batch": 6.0, "tokens": "words"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spoken_corpus(tmp_path_factory.mktemp("spoken"), TEXTS)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("encoders")
    return {name: micro_encoder(name, folder) for name in ("parakeet", "nemotron", "hubert")}


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
    with pytest.raises(UserError, match="has no CTC to start with"):
        api.finetune(encoders["parakeet"], corpus, tmp_path / "out", task="rnnt", flat_start=0.5, **SETTINGS)
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
    with pytest.raises(UserError, match="keeps its head, by rnnt; give an encoder"):
        api.finetune(tmp_path / "asr", corpus, tmp_path / "out", predictor="stateless", **{**SETTINGS, "tokens": None})


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
