"""The command line: one clear line and exit status 2 for every wrong input; one JSON object where asked."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from transformers import BertConfig, Wav2Vec2FeatureExtractor

from diminuendo import cli
from diminuendo.export.huggingface import save
from tiny import tiny_model

SHORT = ["--steps", "4", "--seconds-per-batch", "3", "--round-to", "1", "--device", "cpu", "--quiet"]


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    """Exit status, standard output, standard error of `diminuendo ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["diminuendo", *map(str, arguments)])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit) as exited:
        cli.main()
    out, err = capsys.readouterr()
    return int(exited.value.code or 0), out, err


@pytest.fixture
def inputs(tmp_path: Path, teacher_folder: Path, audio_folder: Path) -> dict[str, Path]:
    """Inputs of every kind of wrongness, and good ones."""
    made = {name: tmp_path / name for name in ("no_weights", "truncated", "bert", "empty", "lines", "gone", "short")}
    for folder in made.values():
        folder.mkdir()
    for name in ("no_weights", "truncated"):
        for path in teacher_folder.iterdir():
            (made[name] / path.name).write_bytes(path.read_bytes())
    (made["no_weights"] / "model.safetensors").unlink()
    whole = (made["truncated"] / "model.safetensors").read_bytes()
    (made["truncated"] / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    BertConfig().save_pretrained(made["bert"])
    good = json.dumps({"audio_filepath": str(audio_folder / "clip0.wav"), "duration": 0.6, "split": "train"})
    (made["lines"] / "manifest.jsonl").write_text(f"{good}\n{{broken\n")
    (made["gone"] / "manifest.jsonl").write_text('{"audio_filepath": "gone.wav", "duration": 1.0}\n')
    soundfile.write(made["short"] / "short.wav", np.ones(80), 16_000)
    (tmp_path / "splits.jsonl").write_text(good + "\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    return {**made, "model": teacher_folder, "audio": audio_folder, "root": tmp_path}


WRONG = {
    "unknown model": ("{root}/nosuch", "{audio}", [], "nosuch"),
    "unknown hub id": ("nobody/nothing", "{audio}", [], "nobody/nothing"),
    "no weights": ("{no_weights}", "{audio}", [], "no_weights"),
    "truncated weights": ("{truncated}", "{audio}", [], "weights cannot be read"),
    "not a speech model": ("{bert}", "{audio}", [], "supported are hubert, wav2vec2, unispeech-sat"),
    "kept 0": ("{model}", "{audio}", ["--keep", "params=0"], "must lie in (0, 1], got 0"),
    "kept above 1": (
        "{model}",
        "{audio}",
        ["--keep", "params=1.2"],
        "got 1.2; for an absolute size write params=23.5M",
    ),
    "kept too little": ("{model}", "{audio}", ["--keep", "params=0.01"], "the smallest possible is params=0."),
    "unknown budget": ("{model}", "{audio}", ["--keep", "layers=0.5"], "known are params, macs"),
    "not a budget": ("{model}", "{audio}", ["--keep", "half"], "params=0.25"),
    "data missing": ("{model}", "{root}/nosuch", [], "does not exist"),
    "a name too long": ("{model}", "x" * 300, [], "File name too long"),
    "data empty": ("{model}", "{empty}", [], "holds no clips"),
    "all audio missing": ("{model}", "{gone}", [], "none of the 1 clips can be used"),
    "broken line": ("{model}", "{lines}", [], "manifest.jsonl"),
    "no such split": ("{model}", "{root}/splits.jsonl", ["--split", "test"], "no split 'test'"),
    "nothing long enough": ("{model}", "{short}", [], "none of the 1 clips can be used"),
    "contradicting flags": ("{model}", "{audio}", ["--resume", "--overwrite"], "contradict"),
    "unknown option": ("{model}", "{audio}", ["--nosuch"], "--nosuch"),
    "a setting that is none": ("{model}", "{audio}", ["--set", "learning_rate"], "expected NAME=VALUE"),
    "an unknown setting": ("{model}", "{audio}", ["--set", "rate=1"], "unknown setting 'rate'"),
    "a setting of another type": ("{model}", "{audio}", ["--set", "layers=[0, 1.5]"], "--set layers=[0, 1.5]: Input"),
    "a setting beside its flag": ("{model}", "{audio}", ["--set", "steps=3"], "steps is given twice"),
    "not a number": ("{model}", "{audio}", ["--steps", "many"], "--steps"),
    "no threads": ("{model}", "{audio}", ["--threads", "0"], "--threads must be at least 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_gets_one_line_and_status_2(
    case: str, inputs: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data, flags, says = WRONG[case]
    out = inputs["root"] / "out"
    capsys.readouterr()
    status, printed, err = run(
        capsys, monkeypatch, "compress", model.format(**inputs), data.format(**inputs), "--out", out, *SHORT, *flags
    )
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (status, printed, len(lines)) == (2, "", 1), err
    assert says in lines[0]
    assert err.strip().splitlines()[-1] == lines[0]
    assert not out.exists()


def test_an_output_directory_that_is_not_empty_is_refused(
    inputs: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = inputs["root"] / "full"
    status, _, err = run(capsys, monkeypatch, "compress", inputs["model"], inputs["audio"], "--out", full, *SHORT)
    assert status == 2
    assert "not empty" in err
    assert "--overwrite" in err


def test_json_prints_exactly_one_object_with_the_promised_keys(
    inputs: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = inputs["root"] / "out"
    flags = ["--keep", "params=0.5", *SHORT, "--json"]
    status, printed, _ = run(capsys, monkeypatch, "compress", inputs["model"], inputs["audio"], "--out", out, *flags)
    result = json.loads(printed)
    assert status == 0
    assert {"params", "macs_per_second", "expected_before_selection", "removal_error", "out"} <= result.keys()
    assert {*result["params"]} == {*result["macs_per_second"]} == {"teacher", "student", "kept"}
    status, printed, _ = run(capsys, monkeypatch, "profile", out, "--json", "--runs", "2", "--seconds", "1")
    profiled = json.loads(printed)
    assert status == 0
    assert profiled["params"] == result["params"]["student"]
    assert {"bytes", "latency_ms", "features_ms", "real_time_factor", "peak_memory_mb", "threads"} <= profiled.keys()
    status, printed, _ = run(capsys, monkeypatch, "report", out, "--out", inputs["root"] / "report.html", "--json")
    assert status == 0
    assert Path(json.loads(printed)["report"]).read_text().startswith("<!DOCTYPE html>")


def test_sensitivity_prints_one_object_or_a_row_an_axis(
    inputs: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["sensitivity", inputs["model"], inputs["audio"], "--seconds", "2", "--device", "cpu"]
    status, printed, err = run(capsys, monkeypatch, *arguments, "--json", "--quiet")
    result = json.loads(printed)
    assert (status, err) == (0, "")
    assert (result["command"], result["model"]) == ("sensitivity", str(inputs["model"]))
    assert 2 <= result["audio_seconds"] < 4
    assert {len(row["changes"]) for row in result["rows"]} == {result["states"]} == {4}
    assert {"axis", "kind", "members", "kept", "params_freed", "macs_freed"} <= result["rows"][0].keys()
    status, printed, err = run(capsys, monkeypatch, *arguments)
    names = [line.split()[0] for line in printed.splitlines()[3:]]
    assert (status, names) == (0, [row["axis"] for row in result["rows"]])
    assert "about" in err


def test_a_dry_run_prints_the_budget_and_writes_nothing(
    inputs: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = inputs["root"] / "out"
    flags = ["--out", out, *SHORT, "--dry-run", "--json", "--keep", "macs=0.5"]
    status, printed, _ = run(capsys, monkeypatch, "compress", inputs["model"], inputs["audio"], *flags)
    assert status == 0
    assert {"smallest_possible", "asked", "total", "estimated_seconds", "estimated_memory_mb"} <= json.loads(
        printed
    ).keys()
    assert not out.exists()


def test_a_dry_run_of_a_pretraining_says_what_it_takes_and_writes_nothing(
    inputs: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = inputs["root"] / "out"
    flags = ["--out", out, "--steps", "1000", "--seconds-per-batch", "3", "--device", "cpu", "--dry-run", "--json"]
    status, printed, _ = run(capsys, monkeypatch, "pretrain", "micro-hubert", inputs["audio"], *flags)
    estimate = json.loads(printed)
    assert status == 0
    assert sum(estimate["steps"].values()) == 1000
    assert estimate["estimated_seconds"] > 0
    assert not out.exists()


def test_pretraining_makes_a_model_that_can_be_compressed(
    inputs: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ssl = inputs["root"] / "ssl"
    flags = ["--out", ssl, "--steps", "6", "--seconds-per-batch", "3", "--device", "cpu", "--quiet", "--json"]
    status, printed, _ = run(capsys, monkeypatch, "pretrain", "micro-hubert", inputs["audio"], *flags)
    assert status == 0
    assert json.loads(printed)["out"] == str(ssl)
    out = inputs["root"] / "out"
    status, _, _ = run(
        capsys, monkeypatch, "compress", ssl, inputs["audio"], "--out", out, "--keep", "params=0.8", *SHORT
    )
    assert status == 0


FINETUNE = ["finetune", "{model}", "{audio}", "--out", "{root}/out"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pretrain", "nosuch", "{audio}", "--out", "{root}/out"], "tiny-hubert"),
        (["evaluate", "{model}", "{audio}"], "keyword"),
        (["evaluate", "{model}", "{audio}", "--probe", "nosuch"], "one of keyword, speaker"),
        (["evaluate", "{model}", "{audio}", "--max-clips", "0"], "--max-clips"),
        (["pretrain", "micro-hubert", "{audio}", "--out", "{root}/out", "--seed", "-1"], "--seed must be at least 0"),
        (["demo", "--data", "{audio}", "--out", "{root}/demo", "--steps", "0"], "--steps must be at least 1"),
        (["demo", "--data", "{audio}", "--out", "{root}/demo", "--probe", "nosuch"], "one of keyword, speaker"),
        (["profile", "{empty}"], "no config.json"),
        (["profile", "{model}", "--seconds", "0.01"], "too short"),
        (["profile", "{model}", "--seconds", "inf"], "expected the length of a clip"),
        (["students", "{model}", "--seconds", "0.001"], "too short"),
        (["students", "{model}", "--seconds", "nan"], "expected the length of a clip"),
        (["evaluate", "{model}", "{audio}", "--device", "tpu"], "expected auto, cpu or cuda"),
        (["report", "{empty}", "--out", "{root}/report.html"], "no run"),
        (["sensitivity", "{model}", "{audio}", "--seconds", "0"], "expected how much audio"),
        (["sensitivity", "{model}", "{audio}", "--device", "tpu"], "expected auto, cpu or cuda"),
        (["sensitivity", "{model}", "{audio}", "--threads", "0"], "--threads must be at least 1"),
        (["sensitivity", "{model}", "{gone}"], "none of the 1 clips can be used"),
        (["sensitivity", "{model}", "{root}/splits.jsonl", "--split", "test"], "no split 'test'"),
        (["sensitivity", "{bert}", "{audio}"], "supported are hubert"),
        (["sensitivity", "{model}", "{audio}", "--out", "{root}/full"], "is not an empty directory"),
        (["sensitivity", "{model}", "{audio}", "--out", "{root}/splits.jsonl/out"], "cannot be made"),
        ([*FINETUNE, "--task", "rnnt", "--set", "predictor=gru"], "Input should be 'lstm' or 'stateless'"),
        ([*FINETUNE, "--task", "ctc", "--set", "predictor=stateless"], "--task ctc has no predictor"),
        ([*FINETUNE, "--set", "predictor=stateless", "--set", "predictor_layers=2"], "has 1 layer, got predictor_l"),
        (["nosuch"], "nosuch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_every_command_answers_wrong_input_in_one_line(
    arguments: list[str],
    says: str,
    inputs: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status, _, err = run(capsys, monkeypatch, *(argument.format(**inputs) for argument in arguments))
    assert status == 2
    assert says in err.strip().splitlines()[-1]
    assert err.strip().splitlines()[-1].startswith("error: ")


def test_ctrl_c_outside_of_training_ends_in_one_line(
    inputs: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("diminuendo.api.read_cuts", interrupted)
    out = inputs["root"] / "out"
    status, printed, err = run(capsys, monkeypatch, "compress", inputs["model"], inputs["audio"], "--out", out, *SHORT)
    assert (status, printed) == (130, "")
    assert err.strip().splitlines()[-1].startswith("error: interrupted")


def test_ctrl_c_stops_after_the_step_and_says_how_to_resume(audio_folder: Path, tmp_path: Path) -> None:
    save(tiny_model(), Wav2Vec2FeatureExtractor(), tmp_path / "teacher")
    out = tmp_path / "out"
    flags = ["--keep", "params=0.5", "--steps", "4000", "--seconds-per-batch", "3", "--device", "cpu", "--threads", "1"]
    arguments = [
        "-m",
        "diminuendo",
        "compress",
        str(tmp_path / "teacher"),
        str(audio_folder),
        "--out",
        str(out),
        *flags,
    ]
    process = subprocess.Popen([sys.executable, *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not ((out / "log.jsonl").is_file() and (out / "log.jsonl").stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip().splitlines()[-1].startswith("error: interrupted after step")
    assert "--resume" in err
    assert (out / "checkpoint.pt").is_file()
    assert not (out / "config.json").exists()
