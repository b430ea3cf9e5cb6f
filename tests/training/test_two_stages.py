"""What a compression learns, as far as a short one shows it, and the check of what it removed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Wav2Vec2FeatureExtractor

from diminuendo.export.huggingface import save
from diminuendo.pruning.removal import remove
from diminuendo.structure.axis import Axis, Selection
from diminuendo.training import removing, two_stages
from diminuendo.training.loop import Loop, Stage
from diminuendo.training.schedules import warm_up_then_decay
from tiny import compress, tiny_model

USELESS = 20  # of 40 neurons a layer


def test_gates_come_near_the_target_and_useless_members_go_first(
    audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tiny_model()
    with torch.no_grad():
        for layer in teacher.encoder.layers:
            layer.feed_forward.output_dense.weight[:, :USELESS] = 0.0
    save(teacher, Wav2Vec2FeatureExtractor(), tmp_path / "teacher")
    scores: dict[str, Tensor] = {}
    select = two_stages.select
    monkeypatch.setattr(two_stages, "select", lambda *given: (scores.update(given[3]), select(*given))[1])
    options = {"steps": 150, "keep": "params=0.6", "learning_rate": 1e-3}
    result = compress(tmp_path / "teacher", audio_folder, tmp_path / "small", **options)
    assert result["expected_before_selection"] == pytest.approx(0.6, abs=0.03)
    for name, log_alpha in scores.items():
        if name.endswith(".neurons"):
            assert log_alpha[:USELESS].mean() < log_alpha[USELESS:].mean() - 4
    lines = [json.loads(line) for line in (tmp_path / "small" / "log.jsonl").open()]
    assert lines[-1]["loss"] < 0.7 * result["sampling_at_start"]


@pytest.mark.parametrize("parameter", ["q_proj.weight", "intermediate_dense.bias"])
def test_a_model_that_is_removed_wrongly_is_not_written(
    parameter: str, teacher_folder: Path, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of members that the gates had shut and only the selection keeps: two steps shut nearly everything."""

    def wrongly(axes: tuple[Axis, ...], state: Mapping[str, Tensor], selection: Selection) -> dict[str, Tensor]:
        kept = remove(axes, state, selection)
        name = next(name for name in kept if name.endswith(parameter))
        return {**kept, name: kept[name].flip(0)}

    monkeypatch.setattr(removing, "remove", wrongly)
    with pytest.raises(RuntimeError, match="is not the gated one"):
        compress(teacher_folder, audio_folder, tmp_path / "small", steps=2, gate_learning_rate=8.0)
    assert not (tmp_path / "small" / "model.safetensors").exists()


def test_a_rate_rises_and_falls() -> None:
    schedule = warm_up_then_decay(10, 0.3)
    expected = [1 / 3, 2 / 3, 1, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7]
    assert [schedule(step) for step in range(10)] == pytest.approx(expected)


@pytest.mark.parametrize("method", ["l0", "magnitude"])
def test_one_schedule_goes_on_after_removal(
    method: str, teacher_folder: Path, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where gates learn what goes; where nothing is learned before removal there is no rate to go on from."""
    rates: list[float] = []
    run_stage = Loop.run_stage

    def seen(self: Loop, stage: Stage, *given: Any, **options: Any) -> Any:
        group = stage.groups[0]
        rates.extend(group.learning_rate * group.schedule(step) for step in range(stage.steps))
        return run_stage(self, stage, *given, **options)

    monkeypatch.setattr(Loop, "run_stage", seen)
    options: dict[str, Any] = {"learning_rate": 1e-3, "one_schedule": True, "distil_warm_up": 0.5}
    compress(teacher_folder, audio_folder, tmp_path / "small", method=method, steps=4, distil_steps=4, **options)
    if method == "l0":
        whole = [1e-3 * warm_up_then_decay(8, 0.3)(step) for step in range(8)]
        assert rates == pytest.approx([*whole[:4], whole[4] / 2, *whole[5:]])
    else:
        assert rates == pytest.approx([1e-4 * warm_up_then_decay(8, 0.5)(step) for step in range(8)])


def test_states_that_are_not_numbers_are_no_equality(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrongly(axes: tuple[Axis, ...], state: Mapping[str, Tensor], selection: Selection) -> dict[str, Tensor]:
        kept = remove(axes, state, selection)
        last = max(name for name in kept if name.endswith("final_layer_norm.bias"))
        return {**kept, last: kept[last] * torch.nan}

    monkeypatch.setattr(removing, "remove", wrongly)
    with pytest.raises(RuntimeError, match="relative error nan"):
        compress(teacher_folder, audio_folder, tmp_path / "small")
    assert not (tmp_path / "small" / "config.json").exists()
