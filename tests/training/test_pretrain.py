import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModel

from diminuendo.data.manifest import read_cuts
from diminuendo.errors import UserError
from diminuendo.families import load
from diminuendo.training import pretrain as pretraining
from diminuendo.training.config import LoopConfig
from diminuendo.training.configurations import CONFIGURATIONS, read_configuration
from diminuendo.training.own_prediction import encoder_of, own_prediction
from diminuendo.training.pretrain import pretrain
from diminuendo.training.pretrain_config import PretrainConfig
from diminuendo.training.run import Run
from diminuendo.training.schedules import warm_up_hold_decay

LOOP = LoopConfig(device="cpu", log_every=1, checkpoint_every=2, quiet=True)
# Stages of 5, 5 and 6 steps.
CONFIG = PretrainConfig(
    steps=16, front_end=0.3, iteration_1=0.3, seconds_per_batch=1.0, num_clusters=5, cluster_seconds=3.0, span=4
)


class Killed(Exception):  # noqa: N818 - no error of the run
    pass


@pytest.fixture(scope="module")
def cuts(tmp_path_factory) -> CutSet:
    """Six clips of tones in noise, of half a second and more."""
    folder = tmp_path_factory.mktemp("audio")
    for index in range(6):
        random = np.random.default_rng(index)
        time = np.arange(8_000 + 400 * index) / 16_000
        tones = sum(np.sin(2 * np.pi * hz * time**1.5) for hz in random.uniform(200, 3_000, 3))
        soundfile.write(folder / f"{index}.wav", 0.1 * tones + 0.01 * random.standard_normal(len(time)), 16_000)
    return read_cuts(folder, None)


@pytest.fixture(scope="module")
def finished(cuts, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    return out, pretrain("micro-hubert", cuts, out, CONFIG, loop=LOOP)


def weights(out):
    return load_file(out / "model.safetensors") | load_file(out / "clusters.safetensors")


def differing(one, other):
    return sorted(one.keys() ^ other.keys()) + [key for key in one if key in other and not one[key].equal(other[key])]


def kill_after(monkeypatch, total_step):
    append = Run.append

    def dying(run, line):
        append(run, line)
        if line["total_step"] == total_step:
            raise Killed

    monkeypatch.setattr(Run, "append", dying)


# Odd steps of a stage are not checkpointed, and no stage is as done when its last step is logged.
@pytest.mark.parametrize("step", [1, 3, 5, 6, 10, 11, 13, 16])
def test_a_killed_pretraining_resumes_to_the_same_weights(step, finished, cuts, tmp_path, monkeypatch):
    kill_after(monkeypatch, step)
    with pytest.raises(Killed):
        pretrain("micro-hubert", cuts, tmp_path / "out", CONFIG, loop=LOOP)
    monkeypatch.undo()
    torch.manual_seed(step)
    result = pretrain("micro-hubert", cuts, tmp_path / "out", CONFIG, loop=LOOP, resume=True)
    assert differing(weights(tmp_path / "out"), weights(finished[0])) == []
    assert result["accuracy"] == finished[1]["accuracy"]


@pytest.mark.parametrize("step", [3, 13])
def test_a_killed_pretraining_with_a_clip_head_in_bf16_resumes_to_the_same_weights(step, cuts, tmp_path, monkeypatch):
    config = replace(CONFIG, precision="bf16", clip_weights=(1.0, 2.0))
    pretrain("micro-hubert", cuts, tmp_path / "whole", config, loop=LOOP)
    kill_after(monkeypatch, step)
    with pytest.raises(Killed):
        pretrain("micro-hubert", cuts, tmp_path / "out", config, loop=LOOP)
    monkeypatch.undo()
    pretrain("micro-hubert", cuts, tmp_path / "out", config, loop=LOOP, resume=True)
    assert differing(weights(tmp_path / "out"), weights(tmp_path / "whole")) == []


def test_a_third_iteration_clusters_what_the_second_has_learned(cuts, tmp_path, monkeypatch):
    config = replace(CONFIG, iterations=3)
    assert config.stage_steps == {"front_end": 5, "iteration_1": 5, "iteration_2": 3, "iteration_3": 3}
    result = pretrain("micro-hubert", cuts, tmp_path / "whole", config, loop=LOOP)
    assert list(result["accuracy"]) == ["iteration_1", "iteration_2", "iteration_3"]
    kill_after(monkeypatch, 15)
    with pytest.raises(Killed):
        pretrain("micro-hubert", cuts, tmp_path / "out", config, loop=LOOP)
    monkeypatch.undo()
    pretrain("micro-hubert", cuts, tmp_path / "out", config, loop=LOOP, resume=True)
    assert differing(weights(tmp_path / "out"), weights(tmp_path / "whole")) == []
    labels = load_file(tmp_path / "out" / "clusters.safetensors")
    second, third = (
        {key.split(".", 2)[2]: labels[key] for key in labels if key.startswith(f"{name}.model.")}
        for name in ("iteration_2", "iteration_3")
    )
    assert second.keys() == third.keys()
    assert not torch.equal(*(part["encoder.layers.0.feed_forward.output_dense.weight"] for part in (second, third)))
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    objective = own_prediction(str(tmp_path / "out"), load(tmp_path / "out"), extractor, seed=0)
    assert torch.equal(objective.clusters.centres, labels["iteration_3.centres"])


def test_stages_that_are_behind_are_neither_run_nor_clustered_again(cuts, tmp_path, monkeypatch):
    kill_after(monkeypatch, 13)
    with pytest.raises(Killed):
        pretrain("micro-hubert", cuts, tmp_path / "out", CONFIG, loop=LOOP)
    monkeypatch.undo()
    before = [json.loads(line)["stage"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    monkeypatch.setattr(pretraining, "fit_clusters", None)
    pretrain("micro-hubert", cuts, tmp_path / "out", CONFIG, loop=LOOP, resume=True)
    after = [json.loads(line)["stage"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert before == ["front_end"] * 5 + ["iteration_1"] * 5 + ["iteration_2"] * 3
    assert after == ["front_end"] * 5 + ["iteration_1"] * 5 + ["iteration_2"] * 6


def test_the_result_has_sizes_steps_and_accuracies(finished):
    out, result = finished
    assert result == {
        "params": 6296,
        "steps": {"front_end": 5, "iteration_1": 5, "iteration_2": 6},
        "accuracy": result["accuracy"],
        "skipped": result["skipped"],
        "out": str(out),
        "seconds": result["seconds"],
        "cpu_seconds": result["cpu_seconds"],
    }
    assert list(result["accuracy"]) == ["iteration_1", "iteration_2"]
    assert json.loads((out / "result.json").read_text()) == result


def test_what_is_written_is_an_ordinary_transformers_model(finished):
    model = AutoModel.from_pretrained(finished[0]).eval()
    assert (type(model).__name__, model.config.model_type, model.config.layerdrop) == ("HubertModel", "hubert", 0.0)
    waveform = torch.randn(1, 4_000)
    assert model(waveform).last_hidden_state.equal(load(finished[0])(waveform).last_hidden_state)
    assert AutoFeatureExtractor.from_pretrained(finished[0]).do_normalize


def test_what_labels_were_made_with_is_kept(finished):
    tensors = load_file(finished[0] / "clusters.safetensors")
    model = {name for name in tensors if name.startswith("iteration_2.model.")}
    assert len(model) == len(load(finished[0]).state_dict()) - 16  # the teacher had one layer of two
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items() if name not in model}
    assert shapes == {
        f"{iteration}.{name}": shape
        for iteration, dim in (("iteration_1", 39), ("iteration_2", 16))
        for name, shape in {
            "mean": [dim],
            "deviation": [dim],
            "centres": [5, dim],
            "head.projection.weight": [256, 16],
            "head.projection.bias": [256],
            "head.embeddings": [5, 256],
        }.items()
    }


@pytest.mark.parametrize("changes", [{}, {"centred": True, "clip_weights": (5.0, 2.0)}], ids=str)
def test_the_objective_of_the_last_iteration_can_be_taken_up_again(changes, cuts, tmp_path, monkeypatch):
    seen = []
    run = pretraining._Stages._run

    def spy(stages, name, objective, parameters):
        run(stages, name, objective, parameters)
        seen.append(objective)

    monkeypatch.setattr(pretraining._Stages, "_run", spy)
    pretrain("micro-hubert", cuts, tmp_path / "out", replace(CONFIG, **changes), loop=LOOP)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    again = own_prediction(str(tmp_path / "out"), load(tmp_path / "out"), extractor, seed=CONFIG.seed + 2)
    waveforms, lengths = torch.randn(2, 8_000), torch.tensor([8_000, 8_000])
    expected, got = (objective(waveforms, lengths, 0, 5) for objective in (seen[-1], again))
    assert {name: value.item() for name, value in got.items()} == {n: v.item() for n, v in expected.items()}


def test_a_directory_without_labels_is_refused(tmp_path):
    with pytest.raises(UserError, match="needs the labels of its pretraining"):
        own_prediction(str(tmp_path), None, None, seed=0)


def test_the_second_iteration_clusters_states_of_the_model_that_learned_the_first(cuts, tmp_path, monkeypatch):
    seen = []
    states = pretraining._Stages._states

    def spy(stages, kept):
        features = states(stages, kept)
        seen.append((stages.model.state_dict(), features.args[0]))
        return features

    monkeypatch.setattr(pretraining._Stages, "_states", spy)
    monkeypatch.setattr(pretraining._Stages, "_run", lambda *_: None)
    monkeypatch.setattr(pretraining._Stages, "labels", lambda _: {})
    monkeypatch.setattr(pretraining, "_final_accuracies", lambda _: {})
    pretrain("micro-hubert", cuts, tmp_path / "out", replace(CONFIG, target_layer=1), loop=LOOP)
    state, teacher = seen[0]
    assert len(teacher.encoder.layers) == 1
    assert [key for key, value in teacher.state_dict().items() if not value.equal(state[key])] == []
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("name", ["micro-hubert", "micro-hubert-large", "micro-wav2vec2-conformer"])
def test_warm_up_and_masked_prediction_lower_their_losses(name, cuts, tmp_path):
    config = replace(CONFIG, steps=60, front_end=0.4, iteration_1=0.6)
    config = replace(config, front_end_learning_rate=2e-2, learning_rate=5e-3)
    pretrain(name, cuts, tmp_path / "out", config, loop=replace(LOOP, log_every=6, checkpoint_every=0))
    losses = {}
    for line in map(json.loads, (tmp_path / "out" / "log.jsonl").read_text().splitlines()):
        losses.setdefault(line["stage"], []).append(line["loss"])
    assert {stage: values[-1] < values[0] for stage, values in losses.items()} == {
        "front_end": True,
        "iteration_1": True,
    }


def test_a_finished_run_is_not_run_again(finished, cuts, monkeypatch):
    monkeypatch.setattr(pretraining, "_Stages", None)
    assert pretrain("micro-hubert", cuts, finished[0], CONFIG, loop=LOOP, resume=True) == finished[1]


def test_another_configuration_does_not_resume_a_run(finished, cuts):
    with pytest.raises(UserError, match=r"its config\.steps is 16, this one's 17"):
        pretrain("micro-hubert", cuts, finished[0], replace(CONFIG, steps=17), loop=LOOP, resume=True)
    with pytest.raises(UserError, match="its model_fingerprint is"):
        pretrain("micro-hubert-large", cuts, finished[0], CONFIG, loop=LOOP, resume=True)


def test_without_a_warm_up_the_first_iteration_starts_at_once(cuts, tmp_path):
    config = replace(CONFIG, steps=4, front_end=0.0, iteration_1=1.0)
    result = pretrain("micro-hubert", cuts, tmp_path / "out", config, loop=LOOP)
    assert result["steps"] == {"front_end": 0, "iteration_1": 4, "iteration_2": 0}
    assert {name.split(".")[0] for name in load_file(tmp_path / "out" / "clusters.safetensors")} == {
        "iteration_1",
    }


def test_a_warm_up_alone_ends_where_the_stages_after_it_begin(cuts, tmp_path, monkeypatch):
    alone = replace(CONFIG, steps=CONFIG.stage_steps["front_end"], front_end=1.0, iteration_1=0.0)
    result = pretrain("micro-hubert", cuts, tmp_path / "alone", alone, loop=LOOP)
    assert result["accuracy"] == {}
    states = []
    iteration = pretraining._Stages.iteration

    def spy(stages, name):
        states.append({key: value.clone() for key, value in stages.model.state_dict().items()})
        iteration(stages, name)

    monkeypatch.setattr(pretraining._Stages, "iteration", spy)
    pretrain("micro-hubert", cuts, tmp_path / "whole", CONFIG, loop=LOOP)
    found = load(tmp_path / "alone").state_dict()
    assert [key for key, value in states[0].items() if not value.equal(found[key])] == []


def test_overwriting_removes_the_clusters_of_the_run_before(cuts, tmp_path):
    config = replace(CONFIG, steps=4, front_end=0.0, iteration_1=1.0)
    pretrain("micro-hubert", cuts, tmp_path / "out", config, loop=LOOP)
    Run(tmp_path / "out", {}).open(overwrite=True)
    assert not (tmp_path / "out" / "clusters.safetensors").exists()


def test_a_target_layer_that_the_model_lacks_is_the_users_error(cuts, tmp_path):
    with pytest.raises(UserError, match="target_layer 3: expected a number from 1 to 2"):
        pretrain("micro-hubert", cuts, tmp_path / "out", replace(CONFIG, target_layer=3), loop=LOOP)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, r"--steps must be at least 1 and below 2\^32, got 0"),
        ({"front_end": 0.7, "iteration_1": 0.4}, "together at most 1; got 0.7 and 0.4"),
        ({"iteration_1": 0.0}, "the second above 0 unless the first is 1"),
        ({"iterations": 1}, "at least 2, got 1"),
        ({"masked": 1.0}, r"masked must lie in \(0, 1\)"),
    ],
)
def test_a_wrong_setting_is_named(values, message):
    with pytest.raises(UserError, match=message):
        PretrainConfig(**values)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_named_configuration_is_a_model_that_does_not_drop(name):
    config = read_configuration(name)
    dropping = {key for key, value in config.to_dict().items() if "drop" in key and value}
    assert (config.model_type, dropping) == (CONFIGURATIONS[name]["model_type"], set())


@pytest.mark.parametrize(("name", "params"), [("tiny-hubert", 2_451_488), ("tiny-wav2vec2-conformer", 2_632_817)])
def test_tiny_encoders_that_read_waveforms_have_some_two_and_a_half_million_parameters(name, params):
    model = encoder_of(read_configuration(name))
    assert sum(p.numel() for p in model.parameters()) == params


def test_a_configuration_is_read_from_a_file_or_a_directory(tmp_path):
    written = read_configuration("micro-hubert-large")
    written.save_pretrained(tmp_path)
    for source in (tmp_path, tmp_path / "config.json"):
        assert read_configuration(str(source)).to_diff_dict() == written.to_diff_dict()


def test_an_unknown_configuration_lists_the_known():
    with pytest.raises(UserError, match=r"'tiny-huber' is neither .* nor one of tiny-hubert, tiny-wav2vec2"):
        read_configuration("tiny-huber")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "bert"}, "model type 'bert'; expected one of hubert"),
        ({}, "model type 'None'"),
        ({"model_type": "hubert", "mask_time_prob": 0.0}, "mask_time_prob 0.0; masked prediction needs"),
        ({"model_type": "hubert", "conv_dim": [8]}, "config.json: Configuration for convolutional layers is incorrect"),
    ],
)
def test_a_configuration_that_cannot_be_pretrained_is_the_users_error(values, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        read_configuration(str(path))


def test_a_configuration_that_is_not_json_is_the_users_error(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        read_configuration(str(path))


def test_the_learning_rate_rises_holds_and_falls():
    schedule = warm_up_hold_decay(10, 0.2, 0.4)
    assert [round(schedule(step), 3) for step in range(10)] == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
