"""A run and its directory: interrupted, killed, resumed, overwritten, on one process and on two."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import PartialState
from safetensors import safe_open
from transformers import Wav2Vec2FeatureExtractor

import diminuendo
from diminuendo import api
from diminuendo.errors import Interrupted, UserError
from diminuendo.export.huggingface import save
from diminuendo.training.device import device_type, make_accelerator
from diminuendo.training.progress import Diverged
from diminuendo.training.run import write_tensors
from tiny import QUIET, compress, interrupt, tiny_model, weights


@pytest.mark.parametrize("interrupted_at", [5, 12, 15])
def test_an_interrupted_run_resumes_to_the_same_weights(
    interrupted_at: int, teacher_folder: Path, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress(teacher_folder, audio_folder, tmp_path / "whole", accumulate=2)
    with monkeypatch.context() as patch:
        interrupt(patch, interrupted_at)
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


def test_a_run_whose_gradients_are_not_finite_stops_before_it_writes_a_checkpoint_of_them(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0

    def poisoned(parameters: list[torch.nn.Parameter], clip: float) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == 3:
            next(p for p in parameters if p.grad is not None).grad.fill_(float("nan"))
        return clip_grad_norm(parameters, clip)

    clip_grad_norm = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", poisoned)
    loop = replace(QUIET, checkpoint_every=1, log_every=100)
    with pytest.raises(Diverged, match="--set learning_rate"):
        compress(teacher_folder, audio_folder, tmp_path / "small", loop=loop)
    saved = torch.load(tmp_path / "small" / "checkpoint.pt", weights_only=False)
    assert saved["step"] == 2
    assert all(value.isfinite().all() for value in saved["module"].values())


# Every process notes the clips that it hears and the weights and gates that it has at the end of the joint stage.
NOTING = """
import json, os, sys
from pathlib import Path
from diminuendo import cli
from diminuendo.data.batching import TrainingBatches
from diminuendo.training.run import fingerprint
from diminuendo.training.two_stages import TwoStages

def step(self, step=TrainingBatches.__next__):
    batch = step(self)
    heard.append([cut.id for cut in batch.cuts])
    return batch

def remove(self, objective, remove=TwoStages._remove):
    found = {"heard": heard, "weights": fingerprint(objective.student), "gates": objective.gates.log_alpha.tolist()}
    Path(os.environ["NOTES"] + "." + os.environ["RANK"]).write_text(json.dumps(found))
    return remove(self, objective)

heard = []
TrainingBatches.__next__, TwoStages._remove = step, remove
cli.main()
"""


def test_two_processes_hear_different_clips_and_have_one_model(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "noting.py").write_text(NOTING)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [str(tmp_path / "noting.py"), *command(teacher_folder, audio_folder, tmp_path / "small", "--json")[2:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NOTES": str(tmp_path / "notes")}
    environment["CUDA_VISIBLE_DEVICES"] = ""  # a machine of one GPU has none for the second
    done = subprocess.run(
        [sys.executable, *launch, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    model = diminuendo.load(tmp_path / "small")
    assert sum(p.numel() for p in model.parameters()) == json.loads(done.stdout)["params"]["student"]
    first, second = (json.loads((tmp_path / f"notes.{rank}").read_text()) for rank in (0, 1))
    assert (first["weights"], first["gates"]) == (second["weights"], second["gates"])
    together = list(zip(first["heard"], second["heard"], strict=True))[-60:]  # those before were only looked at
    assert sum(set(here).isdisjoint(there) for here, there in together) > 30
    # The last clip of an epoch, where it is the only one left.
    assert all(set(here).isdisjoint(there) or (here == there and len(here) == 1) for here, there in together)


def test_where_steps_are_long_lines_and_checkpoints_come_by_the_clock(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = replace(QUIET, checkpoint_every=1000, log_every=1000)
    with monkeypatch.context() as patch:
        patch.setattr("diminuendo.training.loop.LOG_SECONDS", 0.0)
        patch.setattr("diminuendo.training.loop.CHECKPOINT_SECONDS", 0.0)
        patch.setattr("diminuendo.training.removing.remove", _die)
        with pytest.raises(KeyboardInterrupt):
            compress(teacher_folder, audio_folder, tmp_path / "parts", loop=loop)
    assert len((tmp_path / "parts" / "log.jsonl").read_text().splitlines()) == 12
    with monkeypatch.context() as patch:
        saved: list[int] = []
        patch.setattr("diminuendo.training.loop.save_checkpoint", lambda path, state: saved.append(state["step"]))
        patch.setattr("diminuendo.training.loop.CHECKPOINT_SECONDS", 0.0)
        compress(teacher_folder, audio_folder, tmp_path / "whole", loop=loop)
    assert saved == [*range(1, 13), *range(1, 7)]


def _die(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_run_has_the_values_that_it_took_and_tells_of_other_versions(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    compress(teacher_folder, audio_folder, tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    of_recognisers = {"task", "tokens", "lookaheads", "posterior_weight", "predictor_width"}  # which this is none of
    of_others = {"neuron_drop_rate", "student", "input_steps", "discriminative", "cluster_layer", "cluster_file"}
    assert {name for name, value in run["config"].items() if value is None} == of_others | of_recognisers
    assert run["versions"]["torch"] == version("torch")
    compress(teacher_folder, audio_folder, tmp_path, resume=True)
    assert not any("versions" in message for message in caplog.messages)
    monkeypatch.setattr("diminuendo.training.run.versions", lambda: {**run["versions"], "torch": "3.0"})
    compress(teacher_folder, audio_folder, tmp_path, resume=True)
    assert "'torch': '3.0'" in caplog.messages[-1]


def test_a_device_is_chosen_anew_in_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    PartialState._shared_state["device"] = torch.device("meta")  # as an earlier run had it
    assert make_accelerator("fp32", "cpu").device.type == "cpu"
    for there, chosen in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert device_type("auto") == chosen


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


def test_files_of_others_are_not_overwritten_nor_a_teacher(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(UserError, match=r"holds README\.md, which no run of ours wrote"):
        compress(teacher_folder, audio_folder, tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    save(tiny_model(), Wav2Vec2FeatureExtractor(), tmp_path / "student")
    with pytest.raises(UserError, match="--teacher's own directory"):
        compress(tmp_path / "student", audio_folder, teacher_folder, teacher=teacher_folder, overwrite=True)


def test_a_damaged_run_file_is_said_in_one_line(teacher_folder: Path, audio_folder: Path, tmp_path: Path) -> None:
    compress(teacher_folder, audio_folder, tmp_path)
    for name in ("result.json", "run.json"):
        (tmp_path / name).write_text('{"com')
        with pytest.raises(UserError, match=rf"{name} is damaged .* start again with --overwrite"):
            compress(teacher_folder, audio_folder, tmp_path, resume=True)


def test_an_output_directory_that_cannot_be_made_is_said(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
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

    def save_and_die(*arguments: object, **options: object) -> None:
        save(*arguments, **options)
        _die()

    place, instead = {
        "before removal": ("removing.remove", _die),
        "before saving": ("compress.save", _die),
        "after saving": ("compress.save", save_and_die),
        "before the checkpoint goes": ("run.Path.unlink", _die),
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


def test_tensors_are_written_beside_and_for_whoever_may_read_other_files(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    write_tensors(path := tmp_path / "some.safetensors", {"a": torch.arange(6.0).view(2, 3).T}, {"of": "a test"})
    assert sorted(found.name for found in tmp_path.iterdir()) == ["other", "some.safetensors"]
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"of": "a test"}
        assert torch.equal(file.get_tensor("a"), torch.arange(6.0).view(2, 3).T)


def test_a_run_begun_before_there_was_a_setting_has_its_default(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path
) -> None:
    result = compress(teacher_folder, audio_folder, tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    del run["config"]["width"]
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert compress(teacher_folder, audio_folder, tmp_path, resume=True) == result
    with pytest.raises(UserError, match=r"its config\.width is False, this one's True"):
        compress(teacher_folder, audio_folder, tmp_path, resume=True, width=True)
