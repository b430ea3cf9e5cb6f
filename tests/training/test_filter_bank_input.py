"""Input distillation: filter banks in the place of the waveform, with pruning, with students, and with a task."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from transformers import AutoFeatureExtractor, AutoModel, Wav2Vec2FeatureExtractor

import diminuendo
from diminuendo import api, cli_text
from diminuendo.errors import Interrupted, UserError
from diminuendo.export.huggingface import save
from diminuendo.families import load_feature_extractor, model_inputs
from diminuendo.families.filter_bank_input import hears_filter_banks, hears_level
from diminuendo.modules.filter_bank import without_level
from diminuendo.training.compress_config import CompressConfig
from diminuendo.training.front_end import FrontEndDistillation, hearing_filter_banks
from diminuendo.training.hearing import Hearing, hearing_of
from diminuendo.training.removing import Source
from spoken import spoken_corpus
from tiny import QUIET, compress, interrupt, micro_encoder, tiny_model, weights

TEXTS = ["ba", "du", "ki", "ba du", "du ki", "ki ba"]


def logged(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"student": "thin", "keep": "params=0.7"},
        {"student": "thin", "keep": "params=0.7", "input": "fbank-plain"},
        {"student": "layers=2,width=32,copy=first", "keep": "params=0.75"},
        pytest.param({"method": "l0+lowrank", "round_to": 1, "keep": "params=0.4"}, marks=pytest.mark.slow),
        pytest.param({"method": "magnitude", "width": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_run_meets_its_budget_opens_in_transformers_and_is_the_same_when_it_was_stopped(
    settings: dict[str, Any], teacher_folder: Path, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"input": "fbank", "input_steps": 4, **settings}
    result: Any = compress(teacher_folder, audio_folder, tmp_path / "whole", **given)
    kept = float(given.get("keep", "params=0.5").removeprefix("params="))
    assert result["params"]["teacher"] == sum(p.numel() for p in diminuendo.load(teacher_folder).parameters())
    assert kept - 0.02 <= result["params"]["kept"] <= kept
    assert result["removal_error"] is None or result["removal_error"] < 1e-4

    model = diminuendo.load(tmp_path / "whole")
    assert hears_filter_banks(model)
    assert hears_level(model) == (given["input"] == "fbank-plain")
    if "student" in settings:  # of a thin one nothing comes from the teacher but the convolutions that are replaced
        copied = result["student"]["copied"]
        assert copied == 0.0 if settings["student"] == "thin" else 0.8 < copied < 1.0
    audio = torch.from_numpy(soundfile.read(audio_folder / "clip0.wav", dtype="float32")[0])
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "whole")
    plain = AutoModel.from_pretrained(tmp_path / "whole", trust_remote_code=True).eval()
    ours = load_feature_extractor(tmp_path / "whole")
    with torch.inference_mode():
        theirs = plain(**extractor(audio.numpy(), sampling_rate=16_000, return_tensors="pt")).last_hidden_state
        found = model(**model_inputs(ours, audio[None], torch.tensor([len(audio)]))).last_hidden_state
    assert torch.allclose(theirs, found, atol=1e-4)

    for at in (2, 7):  # in the stage of the front end, and in the one behind it
        out = tmp_path / f"stopped-{at}"
        with monkeypatch.context() as patch:
            interrupt(patch, at)
            with pytest.raises(Interrupted):
                compress(teacher_folder, audio_folder, out, **given)
        compress(teacher_folder, audio_folder, out, resume=True, **given)
        assert weights(out) == weights(tmp_path / "whole")
        results = [json.loads((one / "result.json").read_text()) for one in (out, tmp_path / "whole")]
        for one in results:
            for key in ("out", "seconds", "cpu_seconds"):
                del one[key]
        assert results[0] == results[1]
        steps = [line["total_step"] for line in logged(out)]
        assert steps == sorted(set(steps))
        assert steps[:4] == [-3, -2, -1, 0]


def test_a_front_end_learns_what_the_convolutions_gave(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path
) -> None:
    compress(teacher_folder, audio_folder, tmp_path / "small", input="fbank", input_steps=150)
    losses = [line["loss"] for line in logged(tmp_path / "small") if line["stage"] == "front_end"]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@pytest.mark.parametrize("heard", ["fbank", "fbank-plain"])
def test_bands_are_scaled_as_they_are_heard(
    heard: str, teacher_folder: Path, audio_folder: Path, tmp_path: Path
) -> None:
    compress(teacher_folder, audio_folder, tmp_path / "small", input=heard, input_steps=1)
    model = diminuendo.load(tmp_path / "small")
    front, extractor, bands = model.feature_extractor, load_feature_extractor(tmp_path / "small"), []
    for path in audio_folder.glob("*.wav"):
        audio = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        features = model_inputs(extractor, audio[None], torch.tensor([len(audio)]))["input_features"]
        bands.append(features if heard == "fbank-plain" else without_level(features))
    expected = torch.cat(bands, 1)[0].mean(0)
    assert (front.mean - expected).abs().mean() < 0.2  # clips are cropped


def test_a_run_of_another_front_end_is_not_resumed(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"input": "fbank", "input_steps": 4}
    with monkeypatch.context() as patch:
        interrupt(patch, 2)
        with pytest.raises(Interrupted):
            compress(teacher_folder, audio_folder, tmp_path / "small", **given)
    path = tmp_path / "small" / "run.json"
    run = json.loads(path.read_text())
    del run["front_end"]  # as it was when the word meant the plain one
    path.write_text(json.dumps(run))
    with pytest.raises(UserError, match="holds another run: its front_end is None"):
        compress(teacher_folder, audio_folder, tmp_path / "small", resume=True, **given)


def test_a_front_end_that_diverges_is_told_its_own_rate(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="--set input_learning_rate=1e-4"):
        compress(teacher_folder, audio_folder, tmp_path / "small", input="fbank", input_learning_rate=1e30)


@pytest.mark.parametrize("normed", [True, False])
def test_its_loss_is_the_difference_of_two_front_ends_as_they_are_read_over_the_frames_of_a_clip(normed: bool) -> None:
    model = tiny_model("hubert", "large", feat_proj_layer_norm=normed)
    teacher = Source(model, Wav2Vec2FeatureExtractor(do_normalize=True))
    norm = model.feature_projection.layer_norm if normed else torch.nn.Identity()
    student = hearing_filter_banks(teacher, 0)
    objective = FrontEndDistillation(student, teacher, Hearing())
    waveforms, lengths = torch.randn(2, 8000) * 0.1, torch.tensor([8000, 5000])
    waveforms[1, 5000:] = 0.0
    found = objective(waveforms, lengths, 0, 0)["loss"]
    parts = []
    for clip, length in zip(waveforms, lengths.tolist(), strict=True):
        inputs = [
            model_inputs(one.extractor, clip[None, :length], torch.tensor([length])) for one in (student, teacher)
        ]
        with torch.no_grad():
            own = student.model.feature_extractor(inputs[0]["input_features"])
            its = teacher.model.feature_extractor(inputs[1]["input_values"])
        read = [norm(front.transpose(1, 2)) for front in (own, its)]
        parts.append((read[0] - read[1]).abs()[0])
    assert found.item() == pytest.approx(torch.cat(parts).mean().item(), rel=1e-5)


def test_clips_are_louder_and_softer_for_a_model_that_hears_it_alone() -> None:
    teacher = Source(tiny_model("hubert", "large"), Wav2Vec2FeatureExtractor(do_normalize=False))
    student, hearing = hearing_filter_banks(teacher, 0, plain=True), Hearing(level=6.0)
    waveforms, lengths = torch.randn(40, 4000).clamp(-3, 3) * 0.1, torch.full((40,), 4000)
    heard = [hearing.inputs(student.model, student.extractor, waveforms, lengths, 0, draw) for draw in (0, 0, 1)]
    assert torch.equal(heard[0]["input_features"], heard[1]["input_features"])
    assert not torch.equal(heard[0]["input_features"], heard[2]["input_features"])
    plain = model_inputs(student.extractor, waveforms, lengths)["input_features"]
    decibels = 10 / math.log(10) * (heard[0]["input_features"] - plain)  # of power
    level = decibels.mean((1, 2), keepdim=True)
    assert torch.allclose(decibels, level.expand_as(decibels), atol=1e-2)
    assert 5.0 < level.abs().max() <= 6.01
    assert level.min() < 0 < level.max()
    own = hearing.inputs(teacher.model, teacher.extractor, waveforms, lengths, 0, 0)["input_values"]
    assert torch.equal(own, waveforms)
    student = hearing_filter_banks(teacher, 0)
    found = hearing.inputs(student.model, student.extractor, waveforms, lengths, 0, 0)["input_features"]
    assert torch.equal(found, plain)


def test_a_run_hears_levels_in_every_stage() -> None:
    model = hearing_filter_banks(Source(tiny_model(), Wav2Vec2FeatureExtractor()), 0, plain=True).model
    for task in (None, "ctc"):
        assert hearing_of(CompressConfig(level=6.0, task=task), model).level == 6.0


def test_a_front_end_hears_levels(teacher_folder: Path, audio_folder: Path, tmp_path: Path) -> None:
    losses = []
    for level in (0.0, 20.0):
        out = tmp_path / f"{level:g}"
        compress(teacher_folder, audio_folder, out, input="fbank-plain", input_steps=2, level=level)
        losses.append([line["loss"] for line in logged(out) if line["stage"] == "front_end"])
    assert losses[0] != losses[1]


def test_a_model_without_a_layer_can_hear_filter_banks(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path
) -> None:
    compress(teacher_folder, audio_folder, tmp_path / "shallow", method="layerdrop", keep="params=0.8")
    compress(tmp_path / "shallow", audio_folder, tmp_path / "small", input="fbank", keep="params=0.9")
    model = diminuendo.load(tmp_path / "small")
    assert hears_filter_banks(model)
    before = diminuendo.load(tmp_path / "shallow").config.diminuendo["shape"]
    gone = {name for name, kept in before.items() if kept == 0}
    assert gone
    assert gone <= {name for name, kept in model.config.diminuendo["shape"].items() if kept == 0}


def test_a_model_of_other_frames_is_refused(audio_folder: Path, tmp_path: Path) -> None:
    model = tiny_model()
    config = type(model.config)(**model.config.to_dict() | {"conv_stride": [*model.config.conv_stride[:-1], 1]})
    save(type(model)(config), Wav2Vec2FeatureExtractor(), tmp_path / "fast")
    with pytest.raises(UserError, match=r"filter banks give 499 frames for 10 s, MODEL has \d+; leave it out"):
        compress(tmp_path / "fast", audio_folder, tmp_path / "small", input="fbank")
    assert not (tmp_path / "small").exists()


def test_a_recogniser_learns_its_task_from_filter_banks_and_transcribes(tmp_path: Path) -> None:
    encoder, corpus = micro_encoder("hubert", tmp_path), spoken_corpus(tmp_path / "spoken", TEXTS)
    common = {"loop": QUIET, "steps": 4, "seconds_per_batch": 6.0}
    api.finetune(encoder, corpus, tmp_path / "asr", task="ctc", tokens="words", **common)
    given = {"input": "fbank", "task": "own", "round_to": 1, "keep": "params=0.6"}
    result = api.compress_to_result(tmp_path / "asr", corpus, tmp_path / "small", **given, **common)
    assert result["params"]["kept"] <= 0.6
    files = [corpus.parent / f"{number}.wav" for number in range(3)]
    alone = [api.transcribe(tmp_path / "small", [file])[0]["text"] for file in files]
    assert [one["text"] for one in api.transcribe(tmp_path / "small", files)] == alone
    assert api.evaluate(tmp_path / "small", corpus)["clips"] == len(TEXTS)
    assert api.profile(tmp_path / "small", seconds=1.0, runs=1)["params"] == result["params"]["student"]
    again = api.compress_to_result(
        tmp_path / "small", corpus, tmp_path / "less", task="own", keep="params=0.8", **common
    )
    assert hears_filter_banks(diminuendo.load(tmp_path / "less"))
    assert again["params"]["kept"] <= 0.8
    with pytest.raises(UserError, match="reads features already; leave it out"):
        api.compress_to_result(tmp_path / "small", corpus, tmp_path / "no", **given, **common)


@pytest.mark.parametrize("task", ["ctc", "rnnt"])
def test_an_encoder_that_hears_filter_banks_becomes_a_recogniser(task: str, tmp_path: Path) -> None:
    encoder, corpus = micro_encoder("hubert", tmp_path), spoken_corpus(tmp_path / "spoken", TEXTS)
    common = {"loop": QUIET, "steps": 4, "seconds_per_batch": 6.0}
    given = {"recipe": "dphubert-fbank", "round_to": 1, "keep": "params=0.6"}
    api.compress_to_result(encoder, corpus, tmp_path / "small", **given, **common)
    api.finetune(tmp_path / "small", corpus, tmp_path / "asr", task=task, tokens="words", predictor_width=8, **common)
    assert hears_filter_banks(diminuendo.load(tmp_path / "asr"))
    assert api.evaluate(tmp_path / "asr", corpus)["clips"] == len(TEXTS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"input": "mel"}, "--input mel: expected one of own, fbank, fbank-plain"),
        ({"input": "fbank", "input_steps": 0}, "input_steps must be at least 1"),
        ({"input": "fbank", "level": -1.0}, "level -1: expected decibels from 0 to 60"),
        ({"input": "fbank", "keep": "latency=0.5"}, "a fraction of whose latency"),
        ({"input": "fbank", "objective": "masked_prediction"}, "masked_prediction is of the waveform's frames"),
    ],
)
def test_what_means_nothing_is_refused(
    settings: dict[str, Any], message: str, teacher_folder: Path, audio_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        compress(teacher_folder, audio_folder, tmp_path / "small", **settings)
    assert not (tmp_path / "small").exists()


def test_a_model_that_reads_features_is_refused(audio_folder: Path, tmp_path: Path) -> None:
    encoder = micro_encoder("parakeet", tmp_path)
    with pytest.raises(UserError, match="reads features already; leave it out"):
        compress(encoder, audio_folder, tmp_path / "small", input="fbank")
    assert not (tmp_path / "small").exists()


def test_a_dry_run_tells_the_student_that_the_run_makes(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"recipe": "deep-thin", "keep": "params=0.6", "input": "fbank"}
    told = compress(teacher_folder, audio_folder, tmp_path / "small", dry_run=True, **given)
    assert not (tmp_path / "small").exists()
    line = cli_text.dry_run_text(told).splitlines()[0]
    found = told["student"]
    assert isinstance(found, dict)
    shape = "{layers} layers, {width} wide, {heads} heads, {ffn} neurons".format(**found)
    assert line.endswith(f"; {shape}, with fresh layers")
    made = compress(teacher_folder, audio_folder, tmp_path / "small", **given)["student"]
    assert isinstance(made, dict)
    assert {key: made[key] for key in found} == found
    whole = cli_text.dry_run_text(told | {"student": found | {"begun_as_layers": [0, 1]}}).splitlines()[0]
    assert whole.endswith("begun as the teacher's layers 0, 1")
