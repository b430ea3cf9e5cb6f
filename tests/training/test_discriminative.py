"""Runs with a discriminative loss: whose clusters are learned, kept and refused, and that a run can be stopped."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from diminuendo import api
from diminuendo.errors import Interrupted, UserError
from diminuendo.export.huggingface import save
from tiny import QUIET, compress, extractor_of, interrupt, tiny_model, weights

CLUSTERS: dict[str, Any] = {"discriminative": "projected", "num_clusters": 6, "torn_between": 2.0}
FILE = "centres.safetensors"


def logged(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("settings", [{"student": "layers=1,copy=first", "maps": "last", "keep": "params=0.8"}, {}])
def test_a_run_fits_clusters_keeps_them_and_is_the_same_when_it_was_stopped(
    settings: dict[str, Any], teacher_folder: Path, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = CLUSTERS | settings
    result = compress(teacher_folder, audio_folder, tmp_path / "whole", **given)
    assert result["params"]["kept"] < 0.9
    assert (tmp_path / "whole" / FILE).is_file()
    assert all({"clusters", "agreement", "l1", "cosine"} <= line.keys() for line in logged(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        with pytest.raises(Interrupted):
            compress(teacher_folder, audio_folder, tmp_path / "parts", **given)
    fitted, again = (load_file(tmp_path / out / FILE) for out in ("whole", "parts"))
    assert all(fitted[name].equal(again[name]) for name in fitted)
    compress(teacher_folder, audio_folder, tmp_path / "parts", resume=True, **given)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_clusters_of_an_earlier_run_are_taken_and_those_of_another_teacher_or_layer_refused(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path
) -> None:
    compress(teacher_folder, audio_folder, tmp_path / "first", **CLUSTERS)
    file = {"cluster_file": str(tmp_path / "first" / FILE)}
    compress(teacher_folder, audio_folder, tmp_path / "second", **CLUSTERS, **file)
    assert weights(tmp_path / "first") == weights(tmp_path / "second")
    assert not (tmp_path / "second" / FILE).exists()
    with pytest.raises(UserError, match="lies in --out, which is written anew"):
        compress(teacher_folder, audio_folder, tmp_path / "first", overwrite=True, **CLUSTERS, **file)
    for change, message in (
        ({"cluster_layer": 1}, "is of layer 3; give --set cluster_layer too"),
        ({"cluster_file": str(audio_folder / "nothing")}, "no clusters can be read"),
        ({"cluster_file": str(teacher_folder / "model.safetensors")}, "no clusters can be read"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            compress(teacher_folder, audio_folder, tmp_path / "third", **{**CLUSTERS, **file, **change})
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="is of another teacher"):
        compress(tmp_path / "first", audio_folder, tmp_path / "third", **CLUSTERS, **file)
    assert not (tmp_path / "third").exists()


def test_a_teacher_that_predicted_clusters_has_them_itself(
    audio_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pretraining = {"steps": 4, "num_clusters": 3, "seconds_per_batch": 4.0, "cluster_seconds": 4.0}
    api.pretrain("micro-hubert", audio_folder, tmp_path / "ssl", loop=QUIET, **pretraining)
    with caplog.at_level("INFO", logger="diminuendo"):
        compress(tmp_path / "ssl", audio_folder, tmp_path / "own", discriminative="projected", regression_weight=0.0)
    assert "the teacher's own 3 clusters are learned" in caplog.text
    assert not (tmp_path / "own" / FILE).exists()
    assert all("clusters" in line and "l1" not in line for line in logged(tmp_path / "own"))
    compress(tmp_path / "ssl", audio_folder, tmp_path / "other", **CLUSTERS, cluster_layer=1)
    assert (tmp_path / "other" / FILE).is_file()
    shutil.rmtree(tmp_path / "other")
    found = compress(tmp_path / "ssl", audio_folder, tmp_path / "other", **CLUSTERS, cluster_layer=1, dry_run=True)
    assert found["seconds_per_step"] > 0
    assert not (tmp_path / "other").exists()


def test_a_recogniser_without_its_task_needs_regression_and_its_clusters_are_those_of_its_encoder(
    audio_folder: Path, tmp_path: Path
) -> None:
    model = tiny_model(ctc=True)
    save(model, extractor_of(model), tmp_path / "asr")
    save(model.hubert, extractor_of(model), tmp_path / "encoder")
    with pytest.raises(UserError, match="MODEL's head would read states that nothing holds; give --task own"):
        compress(tmp_path / "asr", audio_folder, tmp_path / "small", **CLUSTERS, regression_weight=0.0)
    compress(tmp_path / "asr", audio_folder, tmp_path / "small", **CLUSTERS)
    file = {"cluster_file": str(tmp_path / "small" / FILE)}
    compress(tmp_path / "encoder", audio_folder, tmp_path / "again", **CLUSTERS, **file)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"discriminative": "soft"}, "discriminative 'soft': expected one of projected, free, hard"),
        ({"regression_weight": 0.0}, "regression_weight and cluster_file go with a discriminative loss"),
        ({"discriminative": "free", "cluster_layer": 9}, "cluster_layer 9: expected a number from 0 to 3"),
        ({"discriminative": "free", "num_clusters": 5}, "fewer but more than 1 to be torn between"),
        ({"discriminative": "free", "cluster_weight": -1.0}, "must not be negative"),
        ({"discriminative": "free", "cluster_weight": 0.0}, "nothing is learned of it"),
        ({"discriminative": "free", "hidden_weight": 0.0}, "nothing is learned of it"),
        ({"discriminative": "free", "objective": "masked_prediction"}, "masked_prediction has no teacher"),
        ({"discriminative": "free", "num_clusters": 400}, "num_clusters 400: there are 3.. frames"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    settings: dict[str, Any], message: str, teacher_folder: Path, audio_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        compress(teacher_folder, audio_folder, tmp_path / "small", **settings)
    assert not (tmp_path / "small").exists()
