"""Pretraining of encoders that read features, from a named configuration to a directory."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet
from safetensors.torch import load_file, save_file
from transformers import AutoFeatureExtractor, AutoModel

from diminuendo import api
from diminuendo.data.manifest import read_cuts
from diminuendo.errors import Interrupted, UserError
from diminuendo.families import family_of, load
from diminuendo.tasks.best_rq import BestRQ
from diminuendo.training.config import LoopConfig
from diminuendo.training.configurations import read_configuration
from diminuendo.training.hearing import lookaheads_of
from diminuendo.training.own_prediction import encoder_of, own_prediction
from diminuendo.training.pretrain import dry_run, pretrain
from diminuendo.training.pretrain_best_rq import BestRQStages
from diminuendo.training.pretrain_config import BestRQConfig, PretrainConfig
from diminuendo.training.run import Run
from tiny import audio, interrupt, weights

LOOP = LoopConfig(device="cpu", log_every=1, checkpoint_every=2, quiet=True)
CONFIG = BestRQConfig(steps=6, seconds_per_batch=2.0, codes=8, code_dim=4, masked=0.5)
MICRO = ["micro-parakeet", "micro-nemotron", "micro-wav2vec2-bert"]
TINY = {"tiny-parakeet": 3_123_952, "tiny-nemotron": 3_133_168, "tiny-wav2vec2-bert": 2_936_264}


class Killed(Exception):  # noqa: N818 - no error of the run
    pass


@pytest.fixture(scope="module")
def cuts(tmp_path_factory) -> CutSet:
    """Six clips of 1.2 s: two tones in turn, for 160 ms each, in a little noise."""
    folder = tmp_path_factory.mktemp("audio")
    for index in range(6):
        random = np.random.default_rng(index)
        tones = np.resize(np.repeat(random.choice([300, 700, 1_500, 3_000], 2, replace=False), 2_560), 19_200)
        phase = np.cumsum(2 * np.pi * tones / 16_000)
        soundfile.write(folder / f"{index}.wav", 0.3 * np.sin(phase) + 0.01 * random.standard_normal(19_200), 16_000)
    return read_cuts(folder, None)


@pytest.fixture(scope="module")
def finished(cuts, tmp_path_factory):
    """Of every configuration the directory and the result."""
    root = tmp_path_factory.mktemp("runs")
    return {name: (root / name, pretrain(name, cuts, root / name, CONFIG, loop=LOOP)) for name in MICRO}


@pytest.mark.parametrize(("name", "step"), [*((name, 3) for name in MICRO), ("micro-parakeet", 1)])
def test_a_killed_pretraining_resumes_to_the_same_weights(name, step, finished, cuts, tmp_path, monkeypatch):
    append = Run.append

    def dying(run, line):
        append(run, line)
        if line["total_step"] == step:
            raise Killed

    monkeypatch.setattr(Run, "append", dying)
    with pytest.raises(Killed):
        pretrain(name, cuts, tmp_path / "out", CONFIG, loop=LOOP)
    monkeypatch.undo()
    torch.manual_seed(step)
    result = pretrain(name, cuts, tmp_path / "out", CONFIG, loop=LOOP, resume=True)
    out, whole = finished[name]
    found, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", out))
    assert found.keys() == expected.keys()
    assert [key for key in found if not found[key].equal(expected[key])] == []
    assert result["accuracy"] == whole["accuracy"]


def test_the_result_has_sizes_steps_and_the_accuracy(finished):
    out, result = finished["micro-parakeet"]
    assert result == {
        "params": 8_976,
        "steps": {"best_rq": 6},
        "accuracy": {"best_rq": result["accuracy"]["best_rq"]},
        "skipped": result["skipped"],
        "out": str(out),
        "seconds": result["seconds"],
        "cpu_seconds": result["cpu_seconds"],
    }
    assert json.loads((out / "result.json").read_text()) == result
    assert "BEST-RQ" in (out / "README.md").read_text()
    assert not (out / "clusters.safetensors").exists()
    assert {name: tuple(value.shape) for name, value in load_file(out / "best_rq.safetensors").items()} == {
        "head.weight": (8, 16),
        "head.bias": (8,),
    }


@pytest.mark.parametrize(
    ("name", "model", "extractor", "bands"),
    [
        ("micro-parakeet", "ParakeetEncoder", "ParakeetFeatureExtractor", 16),
        ("micro-nemotron", "NemotronAsrStreamingEncoder", "NemotronAsrStreamingFeatureExtractor", 16),
        ("micro-wav2vec2-bert", "Wav2Vec2BertModel", "SeamlessM4TFeatureExtractor", 80),
    ],
)
def test_what_is_written_is_an_ordinary_transformers_model_with_its_extractor(name, model, extractor, bands, finished):
    found, hears = (cls.from_pretrained(finished[name][0]) for cls in (AutoModel, AutoFeatureExtractor))
    assert (type(found).__name__, type(hears).__name__, hears.feature_size) == (model, extractor, bands)
    inputs = hears([np.random.default_rng(0).standard_normal(8_000)], sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        states = [opened.eval()(**inputs).last_hidden_state for opened in (found, load(finished[name][0]))]
    assert torch.equal(*states)


@pytest.mark.parametrize("name", MICRO)
def test_fresh_weights_learn_two_clips_by_heart_in_two_dozen_steps(name):
    torch.manual_seed(0)
    settings = {"codebooks": 1, "codes": 8, "code_dim": 4, "masked": 0.5, "span_seconds": 0.4, "seed": 0}
    objective = BestRQ(encoder_of(read_configuration(name)), **settings).train()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-2)
    losses = []
    for step in range(24):
        loss = objective(audio(2, 16_000), torch.tensor([16_000, 16_000]), step, step % 2)["loss"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[1]


def test_a_dry_run_says_what_it_would_take(cuts):
    found = dry_run("micro-parakeet", cuts, replace(CONFIG, steps=600), loop=LOOP)
    assert (found["params"], found["steps"]) == (8_976, {"best_rq": 600})
    assert found["estimated_seconds"] == found["estimated_seconds_by_stage"]["best_rq"] > 0


@pytest.mark.parametrize("name", TINY)
def test_fresh_weights_can_be_trained(name):
    """Transformers' own of Parakeet and Nemotron leave a deviation of 1e-6 behind the subsampling."""
    torch.manual_seed(0)
    model = encoder_of(read_configuration(name))
    assert sum(p.numel() for p in model.parameters()) == TINY[name]
    with torch.inference_mode():
        states = family_of(model).hidden_states(model, family_of(model).example(model, 32_000))
    assert states[0].std() > 1e-2
    assert min(state.std(1).mean() for state in states[1:]) > 5e-2  # over time, in every dimension


@pytest.mark.parametrize(
    ("given", "changes", "expected"),
    [
        ((), {}, (0, 1, 6, 13)),
        ((), {"default_num_lookahead_tokens": 3, "sliding_window": 9}, (0, 1, 3, 6)),
        ((2, 5), {}, (2, 5)),
    ],
)
def test_lookaheads_are_those_asked_for_or_those_that_fit(given, changes, expected):
    model_config = read_configuration("micro-nemotron")
    for name, value in changes.items():
        setattr(model_config, name, value)
    assert lookaheads_of(model_config, given) == expected


def test_an_encoder_that_sees_everything_has_no_lookaheads():
    assert lookaheads_of(read_configuration("micro-parakeet")) == ()


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("micro-parakeet", replace(CONFIG, lookaheads=(1,)), r"lookaheads \[1\]: MODEL is no streaming model"),
        ("micro-nemotron", replace(CONFIG, lookaheads=(70,)), "a lookahead of 70 frames leaves no past"),
        ("micro-parakeet", PretrainConfig(steps=2), "is pretrained by best_rq; got settings of clusters"),
        ("micro-hubert", CONFIG, "is pretrained by clusters; got settings of best_rq"),
    ],
)
def test_settings_that_do_not_go_with_the_configuration_are_the_users_error(name, config, message, cuts, tmp_path):
    with pytest.raises(UserError, match=message):
        pretrain(name, cuts, tmp_path / "out", config, loop=LOOP)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, r"--steps must be at least 1"),
        ({"masked": 0.0}, r"masked must lie in \(0, 1\)"),
        ({"span_seconds": 0.0}, "span_seconds be above 0"),
        ({"codes": 1}, "codes must be at least 2, got 1"),
        ({"codebooks": 0}, "codebooks must be at least 1, got 0"),
        ({"lookaheads": (0, -1)}, r"lookaheads are frames, 0 or more; got \[0, -1\]"),
        ({"objective": "clusters"}, "objective 'clusters': this encoder has 'best_rq'"),
    ],
)
def test_a_wrong_setting_is_named(values, message):
    with pytest.raises(UserError, match=message):
        BestRQConfig(**values)


def test_the_configuration_says_which_settings_there_are(tmp_path):
    assert api.pretrain_config("tiny-nemotron") is BestRQConfig
    assert api.pretrain_config("tiny-hubert") is PretrainConfig
    settings = api.read_settings(BestRQConfig, ["objective=best_rq", "lookaheads=[0, 6]"])
    assert BestRQConfig(**settings).lookaheads == (0, 6)
    with pytest.raises(UserError, match="objective=clusters"):
        api.read_settings(BestRQConfig, ["objective=clusters"])
    with pytest.raises(UserError, match="num_clusters"):
        api.pretrain("micro-parakeet", tmp_path, tmp_path / "out", num_clusters=5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"add_adapter": True}, "add_adapter is true"),
        ({"feature_projection_input_dim": 161}, "feature_projection_input_dim 161: expected an even number"),
    ],
)
def test_a_configuration_that_cannot_be_pretrained_is_the_users_error(values, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "wav2vec2-bert", **values}))
    with pytest.raises(UserError, match=message):
        read_configuration(str(path))


def test_a_recognisers_configuration_is_the_users_error(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "parakeet_ctc"}))
    with pytest.raises(UserError, match=r"model type 'parakeet_ctc'; expected one of hubert.*, parakeet_encoder"):
        read_configuration(str(path))


@pytest.mark.parametrize("name", MICRO)
def test_a_compression_goes_on_with_the_objective_that_pretraining_ended_with(name, cuts, tmp_path, monkeypatch):
    ended, labels = [], BestRQStages.labels
    monkeypatch.setattr(BestRQStages, "labels", lambda stages: (ended.append(stages.objective), labels(stages))[1])
    config = replace(CONFIG, seed=3, codebooks=2, steps=3)
    pretrain(name, cuts, tmp_path / "ssl", config, loop=LOOP)
    own = own_prediction(str(tmp_path / "ssl"), load(tmp_path / "ssl"), None, seed=3)
    before = {key: value.clone() for key, value in own.train().state_dict().items()}
    assert not any(module.training for module in own.student.modules())
    heard = audio(2, 16_000)
    for draw in range(4):
        going_on, known = (
            objective(heard, torch.tensor([16_000, 12_000]), 0, draw) for objective in (own, ended[0].eval())
        )
        assert {key: value.item() for key, value in going_on.items()} == {k: v.item() for k, v in known.items()}
    assert all(value.equal(before[key]) for key, value in own.state_dict().items())
    other = own_prediction(str(tmp_path / "ssl"), load(tmp_path / "ssl"), None, seed=4)
    assert other.lookaheads == own.lookaheads == ((0, 1, 6, 13) if name == "micro-nemotron" else ())
    assert torch.equal(other.quantiser.codes, own.quantiser.codes)
    assert (
        other(heard, torch.tensor([16_000, 12_000]), 0, 0)["loss"]
        != own(heard, torch.tensor([16_000] * 2), 0, 0)["loss"]
    )


@pytest.mark.parametrize("name", MICRO)
def test_a_model_is_pruned_by_its_own_objective_exactly_and_resumed(
    name, finished, audio_folder, tmp_path, monkeypatch
):
    model, options = finished[name][0], {"keep": "params=0.7", "objective": "masked_prediction", "round_to": 1}
    settings = {**options, "steps": 6, "seconds_per_batch": 2.0, "loop": LOOP}
    result = api.compress_to_result(model, audio_folder, tmp_path / "whole", **settings)
    assert 0.6 < result["params"]["kept"] <= 0.7
    assert result["removal_error"] < 1e-4
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").open()]
    assert [line["stage"] for line in lines if {"accuracy", "commonest"} <= line.keys()] == ["joint"] * 6 + [
        "distil"
    ] * 3
    assert not any("l1" in line for line in lines)
    with monkeypatch.context() as patch:
        interrupt(patch, 8)
        with pytest.raises(Interrupted):
            api.compress_to_result(model, audio_folder, tmp_path / "parts", **settings)
    api.compress_to_result(model, audio_folder, tmp_path / "parts", resume=True, **settings)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    with pytest.raises(UserError, match="needs the labels of its pretraining"):  # of what is left they are not kept
        api.compress_to_result(tmp_path / "whole", audio_folder, tmp_path / "again", **settings)


@pytest.mark.parametrize("kept", [None, "head.weight"])
def test_a_model_from_before_heads_were_kept_is_the_users_error(kept, finished, audio_folder, tmp_path):
    shutil.copytree(finished["micro-parakeet"][0], tmp_path / "old")
    head = load_file(tmp_path / "old" / "best_rq.safetensors")
    (tmp_path / "old" / "best_rq.safetensors").unlink()
    if kept is not None:
        save_file({kept: head[kept]}, tmp_path / "old" / "best_rq.safetensors")
    with pytest.raises(UserError, match=r"old: masked prediction needs the labels .*; pretrain it with") as caught:
        api.compress_to_result(
            tmp_path / "old", audio_folder, tmp_path / "small", objective="masked_prediction", steps=2
        )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "small").exists()


def test_overwriting_a_pretraining_leaves_nothing_of_it(finished, tmp_path):
    shutil.copytree(finished["micro-parakeet"][0], tmp_path / "out")
    Run(tmp_path / "out", {"command": "other"}).open(overwrite=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.json"]
