"""Compression, end to end: what it gives, what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import HubertForSequenceClassification, Wav2Vec2FeatureExtractor

import diminuendo
from diminuendo import api
from diminuendo.errors import Interrupted, UserError
from diminuendo.export.huggingface import save
from diminuendo.families import family_of, model_inputs
from diminuendo.profiling.count import count_macs_per_second
from diminuendo.training import kernels
from diminuendo.training.compress_config import CompressConfig
from diminuendo.training.config import LoopConfig
from diminuendo.training.grouped_conv import by_fourier_transforms
from diminuendo.training.objective import Teacher
from diminuendo.training.two_stages import TwoStages
from tiny import QUIET, audio, compress, interrupt, tiny_model, weights


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


def test_a_clip_that_only_the_second_stage_meets_is_in_the_result(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(audio_folder, data)
    (data / "broken.wav").write_bytes((data / "clip0.wav").read_bytes()[:100])
    options = {"steps": 1, "distil_steps": 12, "seconds_per_batch": 1.4}  # a clip a batch
    result = compress(teacher_folder, data, tmp_path / "small", **options)
    assert result["skipped"].startswith("skipped 1 clip: 1 too short")


@pytest.mark.parametrize("distil_steps", [0, 6])
def test_a_recognisers_head_reads_what_was_distilled(
    distil_steps: int, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last states go through a map before they are compared; so they do before its head."""
    recogniser = tiny_model("wav2vec2", "large", ctc=True)
    save(recogniser, Wav2Vec2FeatureExtractor(), tmp_path / "asr")
    (tmp_path / "asr" / "vocab.json").write_text('{"a": 0}')
    found: list[torch.nn.Module] = []
    fold = TwoStages._fold_map
    monkeypatch.setattr(TwoStages, "_fold_map", lambda self, *given: (found.append(given[1]), fold(self, *given)))
    options = {"learning_rate": 0.01, "distil_steps": distil_steps}
    compress(tmp_path / "asr", audio_folder, tmp_path / "small", **options)
    small = diminuendo.load(tmp_path / "small")
    shared = found[0].maps["shared"]
    assert (shared.weight - torch.eye(32)).abs().max() > 1e-3
    with torch.inference_mode():
        states = small.wav2vec2(audio()).last_hidden_state
        torch.testing.assert_close(small.lm_head(states), recogniser.lm_head(shared(states)))
    assert (tmp_path / "small" / "vocab.json").read_text() == '{"a": 0}'
    compress(tmp_path / "small", audio_folder, tmp_path / "again", keep="params=0.9", teacher=tmp_path / "asr")
    assert torch.equal(diminuendo.load(tmp_path / "again").lm_head.weight, small.lm_head.weight)


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


def test_a_model_can_be_pruned_by_its_own_objective_and_resumed(
    audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"steps": 8, "num_clusters": 3, "clip_weights": (1.0, 5.0)}
    api.pretrain("micro-hubert", audio_folder, tmp_path / "ssl", loop=QUIET, **settings)
    options = {"keep": "params=0.7", "objective": "masked_prediction"}
    result = compress(tmp_path / "ssl", audio_folder, tmp_path / "whole", **options)
    assert result["removal_error"] < 1e-4
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").open()]
    assert [line["stage"] for line in lines if "masked" in line] == ["joint"] * 12 + ["distil"] * 6
    assert not any("l1" in line for line in lines)
    assert lines[0]["masked_prediction"] == pytest.approx(lines[0]["masked"] + 5 * lines[0]["clip"], rel=1e-4)
    with monkeypatch.context() as patch:
        interrupt(patch, 15)
        with pytest.raises(Interrupted):
            compress(tmp_path / "ssl", audio_folder, tmp_path / "parts", **options)
    compress(tmp_path / "ssl", audio_folder, tmp_path / "parts", **options, resume=True)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_only_a_model_with_labels_has_an_objective_of_its_own(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="needs the labels of its pretraining"):
        compress(teacher_folder, audio_folder, tmp_path / "small", objective="masked_prediction")
    with pytest.raises(UserError, match="has no teacher"):
        compress(
            teacher_folder, audio_folder, tmp_path / "small", objective="masked_prediction", teacher=teacher_folder
        )
    assert not (tmp_path / "small").exists()


def test_a_dry_run_writes_nothing(teacher_folder: Path, audio_folder: Path, tmp_path: Path) -> None:
    result = compress(teacher_folder, audio_folder, tmp_path / "small", dry_run=True)
    assert not (tmp_path / "small").exists()
    assert result["smallest_possible"] < result["asked"] < result["total"]
    assert result["estimated_seconds"] > 0


def test_a_dry_run_has_no_model_to_return(teacher_folder: Path, audio_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="compress_to_result"):
        diminuendo.compress(teacher_folder, audio_folder, tmp_path / "small", dry_run=True)


def test_a_model_in_memory_must_be_one_that_can_be_built_again(teacher_folder: Path) -> None:
    whole = HubertForSequenceClassification(diminuendo.load(teacher_folder).config)
    with pytest.raises(UserError, match="is a HubertForSequenceClassification; expected one of HubertModel"):
        api.source_of(whole)
    with pytest.raises(UserError, match=r"weights in torch\.bfloat16; expected float32"):
        api.source_of(whole.hubert.bfloat16())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep": "params=0.001"}, "smallest possible is params=0."),
        ({"recipe": "nosuch"}, "known are dphubert"),
        ({"loop": LoopConfig(device="tpu")}, "expected auto, cpu or cuda"),
        ({"precision": "fp8"}, "expected fp32 or bf16"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"seed": 2**70}, r"below 2\^32"),
        ({"seconds_per_batch": float("nan")}, "must be finite"),
        ({"seconds_per_batch": float("inf")}, "must be finite"),
        ({"ramp": 1.5}, "ramp is a fraction"),
        ({"drop_rate": 0.0}, "drop_rate must lie in"),
        ({"one_schedule": True, "distil_learning_rate": 1e-3}, "learning_rate goes on after removal"),
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


def test_a_teacher_of_another_depth_is_refused(teacher_folder: Path, audio_folder: Path, tmp_path: Path) -> None:
    save(tiny_model(num_hidden_layers=2), Wav2Vec2FeatureExtractor(), tmp_path / "shallow")
    with pytest.raises(UserError, match="2 layers, MODEL 3"):
        compress(teacher_folder, audio_folder, tmp_path / "small", teacher=tmp_path / "shallow")


def test_a_teacher_of_another_frame_rate_is_refused(teacher_folder: Path, audio_folder: Path, tmp_path: Path) -> None:
    faster = tiny_model("hubert", "base", conv_stride=[5, 2, 2, 2, 2, 2, 1])
    save(faster, Wav2Vec2FeatureExtractor(), tmp_path / "faster")
    with pytest.raises(UserError, match="needs MODEL's frame rate"):
        compress(teacher_folder, audio_folder, tmp_path / "small", teacher=tmp_path / "faster")


def test_what_is_counted_is_the_model_and_not_the_kernels_that_trained_it(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "grouped_convolution", by_fourier_transforms)  # as on a GPU; its MACs go uncounted
    result = compress(teacher_folder, audio_folder, tmp_path / "small")
    loaded = diminuendo.load(tmp_path / "small")
    assert result["macs_per_second"]["student"] == count_macs_per_second(loaded)


def test_a_teacher_hears_its_input_by_its_own_extractor() -> None:
    loud, normed = Wav2Vec2FeatureExtractor(do_normalize=False), Wav2Vec2FeatureExtractor(do_normalize=True)
    model, lengths = tiny_model("hubert", "large"), torch.tensor([8000, 8000])
    waveforms = 0.1 * audio()
    states = {
        name: Teacher(model, own).states(waveforms, lengths, loud, model_inputs(loud, waveforms, lengths), ())
        for name, own in {"its": normed, "the student's": None}.items()
    }
    for name, extractor in {"its": normed, "the student's": loud}.items():
        wanted = family_of(model).hidden_states(model, model_inputs(extractor, waveforms, lengths))
        torch.testing.assert_close(states[name], list(wanted))
    assert (states["its"][-1] - states["the student's"][-1]).abs().max() > 0.1


def test_short_runs_get_gates_that_can_close() -> None:
    assert CompressConfig(steps=40).gate_rate * 40 > 20
    assert CompressConfig(steps=50_000).gate_rate == 0.02


def test_a_task_gets_multipliers_that_can_outbid_its_loss() -> None:
    assert CompressConfig(steps=1600).multiplier_rate == 10 / 1600
    assert CompressConfig(steps=1600, task="own").multiplier_rate == 160 / 1600
    assert CompressConfig(steps=1600, task="own", multiplier_learning_rate=0.02).multiplier_rate == 0.02


@pytest.mark.parametrize(("steps", "front_end"), [(1, 4), (800, 3000), (4000, 3000), (4004, 3003), (5000, 3750)])
def test_filter_banks_learn_for_three_quarters_of_the_steps_and_in_short_runs_for_longer(
    steps: int, front_end: int
) -> None:
    assert CompressConfig(steps=steps, input="fbank").front_end_steps == front_end
    assert CompressConfig(steps=steps, input="fbank-plain", input_steps=7).front_end_steps == 7
    assert CompressConfig(steps=steps).front_end_steps == 0
