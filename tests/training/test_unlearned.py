"""Removal without learning: at the budget, exact, resumable."""

import json
from pathlib import Path

import pytest

import diminuendo
from diminuendo.errors import Interrupted, UserError
from diminuendo.training.compress_config import CompressConfig
from tiny import compress, interrupt, weights

METHODS = ["random", "magnitude", "taylor", "layerdrop"]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_meets_the_budget_and_distils_with_the_steps_of_both_stages(
    method: str, teacher_folder: Path, audio_folder: Path, tmp_path: Path
) -> None:
    result = compress(teacher_folder, audio_folder, tmp_path / "small", keep="params=0.6", method=method)
    model = diminuendo.load(tmp_path / "small")
    assert sum(p.numel() for p in model.parameters()) == result["params"]["student"]
    # One sublayer of the tiny model is some 9 % of it.
    assert 0.6 - (0.1 if method == "layerdrop" else 0.01) <= result["params"]["kept"] <= 0.6
    assert result["expected_before_selection"] == pytest.approx(result["params"]["kept"], abs=0.01)
    assert result["removal_error"] < 1e-4
    log = [json.loads(line) for line in (tmp_path / "small" / "log.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in log] == [("distil", i + 1) for i in range(18)]


def test_layerdrop_removes_sublayers_alone(teacher_folder: Path, audio_folder: Path, tmp_path: Path) -> None:
    result = compress(teacher_folder, audio_folder, tmp_path / "small", keep="params=0.6", method="layerdrop")
    full = result["full_shape"]
    inside = {name: kept for name, kept in result["shape"].items() if name.endswith(("channels", "groups"))}
    assert inside == {name: full[name] for name in inside}
    assert not result["shape"]["encoder.layers.2.attention"]
    assert not result["shape"]["encoder.layers.2.feed_forward"]
    assert result["shape"]["encoder.layers.1.attention"]


def test_rounds_reach_the_budget_in_steps(teacher_folder: Path, audio_folder: Path, tmp_path: Path) -> None:
    result = compress(teacher_folder, audio_folder, tmp_path / "small", method="taylor", rounds=3)
    assert 0.49 <= result["params"]["kept"] <= 0.5
    log = [json.loads(line) for line in (tmp_path / "small" / "log.jsonl").read_text().splitlines()]
    stages = ["round 1"] * 4 + ["round 2"] * 4 + ["distil"] * 10
    assert [(line["stage"], line["total_step"]) for line in log] == list(zip(stages, range(1, 19), strict=True))
    assert result["steps"] == [8, 10]


@pytest.mark.parametrize("at", [3, 4, 6, 11])
def test_a_killed_run_resumes_to_the_same_weights(
    at: int, teacher_folder: Path, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"method": "magnitude", "rounds": 3}
    compress(teacher_folder, audio_folder, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        interrupt(patch, at)
        with pytest.raises(Interrupted):
            compress(teacher_folder, audio_folder, tmp_path / "killed", **options)
    compress(teacher_folder, audio_folder, tmp_path / "killed", resume=True, **options)
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "best"}, "--method best: expected one of"),
        ({"rounds": 2}, "rounds 2: expected 1"),
        ({"method": "random", "rounds": 0}, "rounds 0: expected 1"),
        ({"method": "random", "rounds": 9, "steps": 4}, "rounds 9: more than steps"),
    ],
)
def test_settings_that_contradict_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CompressConfig(**settings)  # type: ignore[arg-type]
