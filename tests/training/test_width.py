"""The width of the residual stream as an axis: off unless asked for, exact, resumable, in every kind of family."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import diminuendo
from diminuendo.distillation.hidden import HiddenDistillation
from diminuendo.errors import Interrupted, UserError
from diminuendo.export.huggingface import save
from diminuendo.families import build, family_of, stream_width
from diminuendo.pruning.gating import Gates, attach, plain_state
from diminuendo.pruning.removal import remove
from diminuendo.structure.shape import shape_of
from diminuendo.training.compress_config import CompressConfig
from diminuendo.training.objective import DistillationObjective
from diminuendo.training.removing import free_axes
from diminuendo.training.two_stages import heads_after
from tiny import audio, compress, extractor_of, interrupt, output_of, tiny_model, weights

# Positions matter in the first two (groups, heads), not in the others.
STYLES = [("hubert", "base"), ("wavlm", "large"), ("wav2vec2-bert", "base"), ("parakeet", "rnnt")]


def saved(family: str, style: str, directory: Path, **changes: Any) -> Any:
    model = tiny_model(family, style, ctc=style != "rnnt", **changes)
    save(model, extractor_of(model), directory)
    return model


@pytest.mark.parametrize(
    ("family", "style", "method", "at"),
    [(*style, method, at) for style, (method, at) in zip(STYLES, [("l0", 5), ("l0+lowrank", 15)] * 2, strict=True)]
    + [("hubert", "base", "taylor", 3)],
)
def test_a_narrower_model_meets_the_budget_loads_and_resumes(
    family: str, style: str, method: str, at: int, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(family, style, tmp_path / "teacher")
    options = {"method": method, "keep": "params=0.5", "width": True, "round_to": 1}
    options |= {"rounds": 2} if method == "taylor" else {"gate_learning_rate": 0.5}
    result: Any = compress(tmp_path / "teacher", audio_folder, tmp_path / "small", **options)
    assert 0.49 < result["params"]["kept"] <= 0.5
    assert result["removal_error"] < 1e-4
    small = diminuendo.load(tmp_path / "small")
    assert stream_width(small) < 32
    assert sum(p.numel() for p in small.parameters()) == result["params"]["student"]
    with monkeypatch.context() as patch:
        interrupt(patch, at)
        with pytest.raises(Interrupted):
            compress(tmp_path / "teacher", audio_folder, tmp_path / "killed", **options)
    compress(tmp_path / "teacher", audio_folder, tmp_path / "killed", resume=True, **options)
    assert weights(tmp_path / "killed") == weights(tmp_path / "small")


@pytest.mark.parametrize("method", ["l0", "magnitude"])
def test_the_width_stays_unless_it_is_asked_for(method: str, audio_folder: Path, tmp_path: Path) -> None:
    saved("hubert", "base", tmp_path / "teacher")
    result: Any = compress(tmp_path / "teacher", audio_folder, tmp_path / "small", method=method)
    assert result["shape"]["width"] == result["full_shape"]["width"] == 32
    assert stream_width(diminuendo.load(tmp_path / "small")) == 32


@pytest.mark.parametrize(("family", "style"), STYLES)
def test_what_is_distilled_after_removal_is_what_was_before(family: str, style: str) -> None:
    """The loss of a gated student equals that of the removed one, whose maps read what is left of its states."""
    teacher, extractor = tiny_model(family, style, seed=1), extractor_of(tiny_model(family, style))
    student = family_of(teacher).plain(tiny_model(family, style))
    gates, whole = Gates(free_axes(student, ()), seed=0), shape_of(family_of(student).axes(student))
    with torch.no_grad():
        gates.log_alpha.uniform_(-1.0, 1.5, generator=torch.Generator().manual_seed(2))
    gated = DistillationObjective(student, teacher, extractor, HiddenDistillation((0, 2, 3), 32, 32))
    attach(student, gates)
    width = next(axis for axis in gates.axes if axis.kind == "width")
    attach(gated, gates, [gated.readers(width)])
    selection = {axis.name: torch.ones(axis.size, dtype=torch.bool) for axis in gates.axes}
    selection["width"][::3] = False
    gates.evaluate(selection)
    shape = whole | shape_of(gates.axes, selection)
    removed = build(teacher, shape, remove(gates.axes, plain_state(student), selection))
    kept = int(selection["width"].sum())
    left = DistillationObjective(removed, teacher, extractor, HiddenDistillation((0, 2, 3), kept, 32))
    left.load_state_dict({**left.state_dict(), **heads_after(gated, gates, selection)})
    waveforms, lengths = audio(), torch.tensor([8000, 8000])
    with torch.no_grad():
        before, after = (objective(waveforms, lengths, 0, 0)["loss"] for objective in (gated, left))
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_a_narrow_model_becomes_narrower(audio_folder: Path, tmp_path: Path) -> None:
    saved("wavlm", "base", tmp_path / "teacher")
    options: dict[str, Any] = {"method": "magnitude", "keep": "params=0.7", "width": True, "round_to": 1}
    once: Any = compress(tmp_path / "teacher", audio_folder, tmp_path / "once", **options)
    twice: Any = compress(tmp_path / "once", audio_folder, tmp_path / "twice", **options)
    assert set(twice["shape"]["width"]) < set(once["shape"]["width"]) < set(range(32))
    assert stream_width(diminuendo.load(tmp_path / "twice")) == len(twice["shape"]["width"])


def test_a_head_reads_what_was_distilled_of_a_narrower_stream(audio_folder: Path, tmp_path: Path) -> None:
    """Of maps as they start, which take the members that stay to their places, a head reads those."""
    teacher = saved("parakeet", "ctc", tmp_path / "teacher")
    options: dict[str, Any] = {"method": "magnitude", "keep": "params=0.7", "width": True, "steps": 1}
    options |= {"distil_steps": 0, "learning_rate": 1e-12, "distil_learning_rate": 1e-12}
    compress(tmp_path / "teacher", audio_folder, tmp_path / "small", **options)
    small = diminuendo.load(tmp_path / "small")
    old, new = (family_of(model).head(model).weight.flatten(1) for model in (teacher, small))
    assert new.shape[1] == stream_width(small) < 32
    assert all(any(torch.allclose(column, other, atol=1e-5) for other in old.T) for column in new.T)
    assert torch.isfinite(output_of(small)).all()


@pytest.mark.parametrize("family", ["wav2vec2", "wav2vec2-bert"])
def test_a_model_whose_adapter_reads_the_width_refuses_in_one_line(
    family: str, audio_folder: Path, tmp_path: Path
) -> None:
    saved(family, "base", tmp_path / "teacher", add_adapter=True)
    with pytest.raises(UserError, match="--width: MODEL's residual stream cannot become narrower"):
        compress(tmp_path / "teacher", audio_folder, tmp_path / "small", width=True)
    assert not (tmp_path / "small").exists()


def test_a_width_that_is_fixed_and_asked_for_is_refused() -> None:
    with pytest.raises(UserError, match="--width: fixed has the width too"):
        CompressConfig(width=True, fixed=("width",))


@pytest.mark.parametrize("settings", [{"method": "layerdrop"}, {"objective": "masked_prediction"}])
def test_what_leaves_the_stream_alone_refuses_a_width(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"--width: .* leaves the residual stream as it is"):
        replace(CompressConfig(width=True), **settings)
