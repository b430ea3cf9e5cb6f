from pathlib import Path
from typing import Any

import pytest
import torch

import diminuendo
from diminuendo.families import family_of
from diminuendo.training import two_stages
from diminuendo.training.config import TrainingConfig
from diminuendo.training.kernels import choose_attention
from tiny import QUIET, SETTINGS, audio, tiny_model


@pytest.mark.parametrize(
    ("precision", "seconds", "device", "chosen"),
    [
        ("bf16", 4.0, "cpu", "eager"),
        ("bf16", 15.0, "cpu", "sdpa"),
        ("fp32", 4.0, "cpu", "sdpa"),
        ("bf16", 4.0, "cuda", "sdpa"),
    ],
)
def test_attention_is_eager_where_that_is_faster(precision: str, seconds: float, device: str, chosen: str) -> None:
    model = tiny_model()
    choose_attention(model, TrainingConfig(steps=1, precision=precision, max_seconds=seconds), torch.device(device))
    assert model.config._attn_implementation == chosen


def test_a_compressed_model_computes_the_same_with_either_and_the_users_own_keeps_its_attention(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def noted(student: Any, *rest: Any) -> None:
        choose_attention(student, *rest)
        trained.append(student.config._attn_implementation)

    monkeypatch.setattr(two_stages, "choose_attention", noted)
    model = diminuendo.load(teacher_folder)
    short = {**SETTINGS, "precision": "bf16", "max_seconds": 1.0, "keep": "params=0.5", "loop": QUIET}
    small = diminuendo.compress(model, audio_folder, tmp_path / "small", **short)
    assert trained == ["eager", "eager"]  # in both stages
    assert model.config._attn_implementation == small.config._attn_implementation == "sdpa"
    inputs = {"input_values": audio()}
    fused = family_of(small).hidden_states(small, inputs)
    small.set_attn_implementation("eager")
    for a, b in zip(family_of(small).hidden_states(small, inputs), fused, strict=True):
        torch.testing.assert_close(a, b)
