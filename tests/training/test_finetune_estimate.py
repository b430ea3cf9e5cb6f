"""What a fine-tuning says beforehand of its time and memory, and that saying it changes nothing."""

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diminuendo import api, cli, cli_text
from diminuendo.data.manifest import read_cuts
from diminuendo.errors import Interrupted, UserError
from diminuendo.export.huggingface import save
from diminuendo.families import load
from diminuendo.given import source_of
from diminuendo.training import finetune as finetuning
from diminuendo.training.finetune_config import FinetuneConfig
from diminuendo.training.recognition import RecognitionObjective
from spoken import spoken_corpus
from tiny import QUIET, extractor_of, interrupt, tiny_model, weights

TEXTS = ["ba", "du", "ki", "ba du", "du ki", "ki ba", "ba ki du", "ki du ba"]
SETTINGS: dict[str, Any] = {"loop": QUIET, "steps": 4, "seconds_per_batch": 4.0, "tokens": "words"}
SENTENCE = "for 4 steps"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spoken_corpus(tmp_path_factory.mktemp("spoken"), TEXTS)


@pytest.fixture(scope="module")
def models(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An encoder with dropout, which draws from torch's generator in every step, and a recogniser of it."""
    folder = tmp_path_factory.mktemp("models")
    encoder = tiny_model("parakeet", "encoder", dropout=0.2, attention_dropout=0.2)
    save(encoder, extractor_of(encoder), folder / "encoder")
    api.finetune(folder / "encoder", corpus, folder / "recogniser", task="rnnt", predictor_width=16, **SETTINGS)
    return {"encoder": folder / "encoder", "recogniser": folder / "recogniser"}


def worth(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    monkeypatch.setattr(finetuning, "WORTH_ESTIMATING", steps)


@pytest.mark.parametrize("name", ["encoder", "recogniser"])
def test_a_run_is_the_same_with_and_without_an_estimate(
    name: str,
    models: dict[str, Path],
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = {**SETTINGS, "task": "ctc+rnnt", "tokens": "words" if name == "encoder" else None}
    said = []
    for least in (4, 5):
        worth(monkeypatch, least)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            api.finetune(models[name], corpus, tmp_path / str(least), **settings)
        said.append(caplog.text.count(SENTENCE))
    assert said == [1, 0]
    assert weights(tmp_path / "4") == weights(tmp_path / "5")


def test_a_run_that_goes_on_gives_no_second_estimate(
    models: dict[str, Path],
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worth(monkeypatch, 1)
    with caplog.at_level(logging.INFO):
        with monkeypatch.context() as patch:
            interrupt(patch, 2)
            with pytest.raises(Interrupted):
                api.finetune(models["encoder"], corpus, tmp_path / "out", **SETTINGS)
        api.finetune(models["encoder"], corpus, tmp_path / "out", resume=True, **SETTINGS)
    assert caplog.text.count(SENTENCE) == 1


def test_a_dry_run_says_what_the_run_would_take_and_writes_nothing(
    models: dict[str, Path], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = iter([0.0, 100.0, 200.0, 200.25])  # the first step warms up
    monkeypatch.setattr(finetuning, "time", SimpleNamespace(perf_counter=lambda: next(readings)))
    settings = {**SETTINGS, "task": "rnnt", "max_seconds": 1.0}
    found = api.finetune(models["encoder"], corpus, tmp_path / "out", dry_run=True, **settings)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    result = api.finetune(models["encoder"], corpus, tmp_path / "out", **settings)
    assert found == {
        **{name: result[name] for name in ("params", "task", "tokens", "left_out")},
        "clips": 6,
        "clip_seconds": round(3 * (0.2 + 0.32) + 3 * (0.3 + 0.64), 3),
        "seconds_per_step": 0.25,
        "estimated_seconds": 1.0,
        "estimated_memory_mb": found["estimated_memory_mb"],
    }
    assert found["left_out"] == "2 clips left out: longer than 1 s"
    assert found["estimated_memory_mb"] > 0


def test_the_copy_of_the_model_is_not_counted_as_memory(
    models: dict[str, Path], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetuning, "peak_memory_mb", lambda device: 1000.0)
    monkeypatch.setattr(finetuning, "count_parameters", lambda model: 25_000_000)
    found = api.finetune(models["encoder"], corpus, tmp_path / "out", dry_run=True, **SETTINGS)
    assert found["estimated_memory_mb"] == 900


def test_what_is_timed_are_whole_steps_as_at_the_end_the_largest_batch_first(
    models: dict[str, Path], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, sizes = [], []

    def forward(self: Any, waveforms: Any, lengths: Any, step: int, draw: int, texts: Any) -> Any:
        passes.append((step, draw))
        sizes.append(waveforms.numel())
        return original(self, waveforms, lengths, step, draw, texts)

    original = RecognitionObjective.forward
    monkeypatch.setattr(RecognitionObjective, "forward", forward)
    settings = {**SETTINGS, "steps": 50, "accumulate": 2, "task": "ctc", "flat_start": 0.5}
    api.finetune(models["encoder"], corpus, tmp_path / "out", dry_run=True, **settings)
    assert passes == [(49, 0), (49, 1)] * 2
    assert sizes[0] == sizes[1] > sizes[2] == sizes[3]


def test_a_dry_run_leaves_the_model_as_it_is(models: dict[str, Path], corpus: Path) -> None:
    source = source_of(load(models["recogniser"]))
    before = {name: value.clone() for name, value in source.model.state_dict().items()}
    config = FinetuneConfig(steps=4, seconds_per_batch=4.0)
    finetuning.dry_run(source, read_cuts(corpus, None), config, loop=QUIET)
    after = source.model.state_dict()
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []
    assert [name for name, parameter in source.model.named_parameters() if parameter.grad is not None] == []
    assert not source.model.training


def test_a_dry_run_refuses_what_the_run_would(models: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    for settings, says in (({"task": "rnnt", "flat_start": 0.5}, "no CTC"), ({"lookaheads": (0,)}, "no streaming")):
        with pytest.raises(UserError, match=says):
            api.finetune(models["encoder"], corpus, tmp_path / "out", dry_run=True, **SETTINGS, **settings)


def test_the_command_line_prints_the_estimate_and_writes_nothing(
    models: dict[str, Path],
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "out"
    flags = ["--out", out, "--steps", 6000, "--seconds-per-batch", 4, "--device", "cpu", "--dry-run"]

    def printed(*more: str) -> str:
        words = ["diminuendo", "finetune", models["encoder"], corpus, *flags, *more]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        with pytest.raises(SystemExit) as exit:
            cli.main()
        assert exit.value.code == 0
        assert not out.exists()
        return capsys.readouterr().out

    found = json.loads(printed("--json", "--quiet"))
    assert (caplog.text, found["task"], found["clips"]) == ("", "ctc+rnnt", len(TEXTS))
    assert found["estimated_seconds"] == pytest.approx(6000 * found["seconds_per_step"], abs=0.5)
    assert printed().startswith(cli_text.finetune_dry_run_text(found).splitlines()[0])
    assert "for 6,000 steps, " in caplog.text
