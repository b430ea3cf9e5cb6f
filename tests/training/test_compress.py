"""The two-stage loop, end to end: exact, resumable, on one process and on two."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor

import diminuendo
from diminuendo import api
from diminuendo.errors import UserError
from diminuendo.export.huggingface import save
from diminuendo.training.loop import Interrupted, LoopConfig
from diminuendo.training.two_stages import CompressConfig
from tiny import audio, tiny_model

SETTINGS = {"steps": 12, "seconds_per_batch": 3.0, "round_to": 1}
QUIET = LoopConfig(device="cpu", quiet=True)


def compress(model: Path, data: Path, out: Path, **options: object) -> dict[str, object]:
    return api.compress_to_result(model, data, out, **{"keep": "params=0.5", "loop": QUIET, **SETTINGS, **options})


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("keep", ["params=0.4", "macs=0.5", "params=14k"])
def test_a_compression_meets_its_budget_and_its_model_loads(
    keep: str, teacher_folder: Path, audio_folder: Path, tmp_path: Path
) -> None:
    result = compress(teacher_folder, audio_folder, tmp_path / "small", keep=keep)
    kind = "params" if keep.startswith("params") else "macs_per_second"
    asked = 14_000 / result["params"]["teacher"] if keep == "params=14k" else float(keep.split("=")[1])
    assert asked - 0.01 <= result[kind]["kept"] <= asked
    assert result["removal_error"] < 1e-4
    model = diminuendo.load(tmp_path / "small")
    assert sum(p.numel() for p in model.parameters()) == result["params"]["student"]
    assert json.loads((tmp_path / "small" / "result.json").read_text())["params"] == result["params"]


def test_bf16_compresses_and_the_removed_model_is_still_exact(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path
) -> None:
    result = compress(teacher_folder, audio_folder, tmp_path / "small", precision="bf16")
    assert result["removal_error"] < 1e-4
    model = diminuendo.load(tmp_path / "small")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_an_unusable_clip_is_named_once_in_a_run(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    shutil.copytree(audio_folder, data)
    (data / "broken.wav").write_bytes(b"RIFF")
    result = compress(teacher_folder, data, tmp_path / "small")
    named = [record for record in caplog.records if "skipped broken.wav" in record.getMessage()]
    assert len(named) == 1
    assert result["skipped"].startswith("skipped 1 clip: 1 broken")


def test_a_recogniser_keeps_its_head_and_its_tokenizer(audio_folder: Path, tmp_path: Path) -> None:
    recogniser = tiny_model("wav2vec2", "large", ctc=True)
    save(recogniser, Wav2Vec2FeatureExtractor(), tmp_path / "asr")
    (tmp_path / "asr" / "vocab.json").write_text('{"a": 0}')
    compress(tmp_path / "asr", audio_folder, tmp_path / "small")
    small = diminuendo.load(tmp_path / "small")
    assert torch.equal(small.lm_head.weight, recogniser.lm_head.weight)
    assert (tmp_path / "small" / "vocab.json").read_text() == '{"a": 0}'


def test_a_compressed_model_can_be_compressed_again(teacher_folder: Path, audio_folder: Path, tmp_path: Path) -> None:
    compress(teacher_folder, audio_folder, tmp_path / "once")
    result = compress(tmp_path / "once", audio_folder, tmp_path / "twice", keep="params=0.7", teacher=teacher_folder)
    assert 0.69 <= result["params"]["kept"] <= 0.7
    with torch.inference_mode():
        diminuendo.load(tmp_path / "twice")(audio())


def test_axes_of_a_fixed_kind_keep_their_members(teacher_folder: Path, audio_folder: Path, tmp_path: Path) -> None:
    fixed = ("channels", "groups", "sublayer")
    result = compress(teacher_folder, audio_folder, tmp_path / "small", keep="params=0.6", fixed=fixed)
    shape, full = result["shape"], result["full_shape"]
    assert shape.keys() == full.keys()
    changed = {name.rsplit(".", 1)[-1] for name in full if shape[name] != full[name]}
    assert changed <= {"heads", "neurons"}
    assert changed
    assert 0.59 <= result["params"]["kept"] <= 0.6
    sublayers = [name for name in full if name.endswith((".attention", ".feed_forward"))]
    assert all(shape[name] == full[name] for name in sublayers)


def test_a_model_can_be_pruned_by_its_own_objective_and_resumed(audio_folder: Path, tmp_path: Path) -> None:
    settings = {"steps": 8, "num_clusters": 3, "clip_weights": (1.0, 5.0)}
    api.pretrain("micro-hubert", audio_folder, tmp_path / "ssl", loop=QUIET, **settings)
    options = {"keep": "params=0.7", "objective": "masked_prediction"}
    result = compress(tmp_path / "ssl", audio_folder, tmp_path / "whole", **options)
    assert result["removal_error"] < 1e-4
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").open()]
    assert [line["stage"] for line in lines if "masked" in line] == ["joint"] * 12 + ["distil"] * 6
    assert not any("l1" in line for line in lines)
    assert lines[0]["masked_prediction"] == pytest.approx(lines[0]["masked"] + 5 * lines[0]["clip"], rel=1e-4)


def test_only_a_model_with_labels_has_an_objective_of_its_own(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="needs the labels of its pretraining"):
        compress(teacher_folder, audio_folder, tmp_path / "small", objective="masked_prediction")


@pytest.mark.parametrize("interrupted_at", [5, 12, 15])
def test_an_interrupted_run_resumes_to_the_same_weights(
    interrupted_at: int, teacher_folder: Path, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diminuendo.training import loop

    compress(teacher_folder, audio_folder, tmp_path / "whole", accumulate=2)
    steps = 0

    def counting(self: object, here: bool) -> bool:
        nonlocal steps
        steps += 1
        return steps == interrupted_at

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_anyone", counting)
        with pytest.raises(Interrupted, match="--resume"):
            compress(teacher_folder, audio_folder, tmp_path / "parts", accumulate=2)
    assert not (tmp_path / "parts" / "config.json").exists()
    spent = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=False)["spent"]
    result = compress(teacher_folder, audio_folder, tmp_path / "parts", accumulate=2, resume=True)
    assert all(result[clock] > spent[clock] > 0 for clock in ("seconds", "cpu_seconds"))
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    logged = [(line["stage"], line["step"]) for line in map(json.loads, (tmp_path / "parts" / "log.jsonl").open())]
    assert logged == [("joint", i + 1) for i in range(12)] + [("distil", i + 1) for i in range(6)]


def command(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    flags = ["--keep", "params=0.5", "--steps", "60", "--seconds-per-batch", "3", "--round-to", "1", "--threads", "1"]
    return ["-m", "diminuendo", "compress", str(model), str(data), "--out", str(out), *flags, "--device", "cpu", *more]


def kill_after(lines: int, arguments: list[str], out: Path) -> None:
    """SIGKILL once the log has so many lines: in the middle of whatever the process does then."""
    process = subprocess.Popen([sys.executable, *arguments], stderr=subprocess.DEVNULL, start_new_session=True)
    log, deadline = out / "log.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if log.is_file() and log.read_bytes().count(b"\n") >= lines:
            os.killpg(process.pid, signal.SIGKILL)
            break
        time.sleep(0.001)
    assert process.wait() == -signal.SIGKILL


def test_a_killed_run_resumes_to_the_same_weights(teacher_folder: Path, audio_folder: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    subprocess.run([sys.executable, *command(teacher_folder, audio_folder, whole)], check=True, capture_output=True)
    for lines in (20, 70):
        kill_after(lines, command(teacher_folder, audio_folder, parts, "--resume"), parts)
    last = [sys.executable, *command(teacher_folder, audio_folder, parts, "--resume", "--json")]
    result = subprocess.run(last, check=True, capture_output=True, text=True)
    assert weights(parts) == weights(whole)
    again = subprocess.run(last, check=True, capture_output=True, text=True)
    assert json.loads(again.stdout) == json.loads(result.stdout)


def test_two_processes_make_a_model_that_loads(teacher_folder: Path, audio_folder: Path, tmp_path: Path) -> None:
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    arguments = command(teacher_folder, audio_folder, tmp_path / "small", "--json")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launch, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    model = diminuendo.load(tmp_path / "small")
    assert sum(p.numel() for p in model.parameters()) == json.loads(done.stdout)["params"]["student"]


def test_a_dry_run_writes_nothing(teacher_folder: Path, audio_folder: Path, tmp_path: Path) -> None:
    result = compress(teacher_folder, audio_folder, tmp_path / "small", dry_run=True)
    assert not (tmp_path / "small").exists()
    assert result["smallest_possible"] < result["asked"] < result["total"]
    assert result["estimated_seconds"] > 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep": "params=0.001"}, "smallest possible is params=0."),
        ({"recipe": "nosuch"}, "known are dphubert"),
        ({"loop": LoopConfig(device="tpu")}, "expected auto, cpu or cuda"),
        ({"precision": "fp8"}, "expected fp32 or bf16"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"ramp": 1.5}, "ramp is a fraction"),
        ({"drop_rate": 0.0}, "drop_rate must lie in"),
        ({"neuron_drop_rate": 1.0}, "neuron_drop_rate must lie in"),
        ({"objective": "ctc"}, "expected one of distillation, masked_prediction"),
        ({"fixed": ("toes",)}, "fixed 'toes': expected some of channels, heads"),
        ({"cosine": "plain"}, "expected one of one_minus, log_sigmoid"),
        ({"nosuch": 1}, "unknown setting 'nosuch'"),
        ({"resume": True, "overwrite": True}, "contradict"),
    ],
    ids=str,
)
def test_wrong_options_say_what_was_expected_and_leave_no_directory(
    options: dict[str, object], says: str, teacher_folder: Path, audio_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says) as caught:
        compress(teacher_folder, audio_folder, tmp_path / "small", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "small").exists()


def test_a_directory_that_is_not_empty_is_left_alone(teacher_folder: Path, audio_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        compress(teacher_folder, audio_folder, tmp_path)
    with pytest.raises(UserError, match="no run"):
        compress(teacher_folder, audio_folder, tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    compress(teacher_folder, audio_folder, tmp_path, overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_checkpoint_of_another_run_is_refused(teacher_folder: Path, audio_folder: Path, tmp_path: Path) -> None:
    compress(teacher_folder, audio_folder, tmp_path / "small")
    with pytest.raises(UserError, match=r"another run: its config\.seed is 0, this one's 1; give"):
        compress(teacher_folder, audio_folder, tmp_path / "small", seed=1, resume=True)


def test_a_teacher_of_another_depth_is_refused(teacher_folder: Path, audio_folder: Path, tmp_path: Path) -> None:
    save(tiny_model(num_hidden_layers=2), Wav2Vec2FeatureExtractor(), tmp_path / "shallow")
    with pytest.raises(UserError, match="2 layers, MODEL 3"):
        compress(teacher_folder, audio_folder, tmp_path / "small", teacher=tmp_path / "shallow")


def test_a_teacher_that_hears_its_input_otherwise_is_refused(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path
) -> None:
    save(tiny_model(), Wav2Vec2FeatureExtractor(do_normalize=False), tmp_path / "loud")
    with pytest.raises(UserError, match="do_normalize False, MODEL's True"):
        compress(teacher_folder, audio_folder, tmp_path / "small", teacher=tmp_path / "loud")


def test_a_model_that_no_run_wrote_is_never_overwritten(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path
) -> None:
    before = weights(teacher_folder)
    save(tiny_model(), Wav2Vec2FeatureExtractor(), tmp_path / "mine")
    with pytest.raises(UserError, match="MODEL's own directory"):
        compress(teacher_folder, audio_folder, teacher_folder, overwrite=True)
    with pytest.raises(UserError, match="no run of ours wrote"):
        compress(teacher_folder, audio_folder, tmp_path / "mine", overwrite=True)
    assert weights(teacher_folder) == weights(tmp_path / "mine") == before


def test_an_output_directory_that_cannot_be_made_is_said(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        compress(teacher_folder, audio_folder, tmp_path / "file" / "small")


def test_overwriting_a_run_leaves_nothing_of_it(teacher_folder: Path, audio_folder: Path, tmp_path: Path) -> None:
    save(tiny_model(ctc=True), Wav2Vec2FeatureExtractor(), tmp_path / "asr")
    (tmp_path / "asr" / "vocab.json").write_text('{"a": 0}')
    compress(tmp_path / "asr", audio_folder, tmp_path / "out")
    (tmp_path / "out" / "mine.txt").write_text("mine")
    api.pretrain("micro-hubert", audio_folder, tmp_path / "out", overwrite=True, loop=QUIET, steps=3, num_clusters=3)
    api.pretrain("micro-hubert", audio_folder, tmp_path / "new", loop=QUIET, steps=3, num_clusters=3)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "mine.txt",
        *(path.name for path in (tmp_path / "new").iterdir()),
    }


@pytest.mark.parametrize("killed", ["before removal", "before saving", "after saving", "before the checkpoint goes"])
def test_a_run_killed_between_its_last_steps_finishes_as_if_it_had_not_been(
    killed: str, teacher_folder: Path, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def save_and_die(*arguments: object, **options: object) -> None:
        save(*arguments, **options)
        die()

    place, instead = {
        "before removal": ("two_stages.remove", die),
        "before saving": ("compress.save", die),
        "after saving": ("compress.save", save_and_die),
        "before the checkpoint goes": ("run.Path.unlink", die),
    }[killed]
    expected = compress(teacher_folder, audio_folder, whole)
    with monkeypatch.context() as patch:
        patch.setattr(f"diminuendo.training.{place}", instead)
        with pytest.raises(KeyboardInterrupt):
            compress(teacher_folder, audio_folder, parts)
    result = compress(teacher_folder, audio_folder, parts, resume=True)
    assert weights(parts) == weights(whole)
    differing = {"out", "seconds", "cpu_seconds"}
    assert {k: v for k, v in result.items() if k not in differing} == {
        k: v for k, v in expected.items() if k not in differing
    }
    assert not (parts / "checkpoint.pt").exists()


def test_a_damaged_checkpoint_is_said_in_one_line(teacher_folder: Path, audio_folder: Path, tmp_path: Path) -> None:
    compress(teacher_folder, audio_folder, tmp_path / "small")
    (tmp_path / "small" / "result.json").unlink()
    (tmp_path / "small" / "checkpoint.pt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UserError, match="is damaged") as caught:
        compress(teacher_folder, audio_folder, tmp_path / "small", resume=True)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_said_in_one_line_and_leaves_the_checkpoint(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diminuendo.training import checkpoint

    real, calls = torch.save, 0

    def full_after_two(*arguments: object, **options: object) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise OSError(28, "No space left on device")
        real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.torch, "save", full_after_two)
        with pytest.raises(UserError, match="no space left") as caught:
            compress(teacher_folder, audio_folder, tmp_path / "small")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in (tmp_path / "small").iterdir() if path.suffix in (".pt", ".tmp")) == [
        "checkpoint.pt"
    ]
    compress(teacher_folder, audio_folder, tmp_path / "whole")
    compress(teacher_folder, audio_folder, tmp_path / "small", resume=True)
    assert weights(tmp_path / "small") == weights(tmp_path / "whole")


def test_short_runs_get_gates_that_can_close() -> None:
    assert CompressConfig(steps=40).gate_rate * 40 > 20
    assert CompressConfig(steps=50_000).gate_rate == 0.02
