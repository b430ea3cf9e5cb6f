"""What cutting one axis does: the same as removing it, and what the cost model says it frees."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from diminuendo import api
from diminuendo.data.manifest import read_cuts
from diminuendo.distillation.hidden import valid_frames
from diminuendo.errors import UserError
from diminuendo.evaluation.sensitivity import AxisSensitivity, audio_batches, halved, measure
from diminuendo.families import build, family_of, model_inputs
from diminuendo.importance import magnitude
from diminuendo.profiling.count import count_macs_per_second, count_parameters
from diminuendo.pruning.removal import remove
from diminuendo.report.sensitivity import sensitivity_plot
from diminuendo.structure.shape import shape_of
from tiny import VARIANTS, extractor_of, tiny_model


@pytest.fixture(scope="module")
def batches(audio_folder: Path) -> Any:
    """Two, with clips of different lengths."""
    cuts = read_cuts(audio_folder, None)
    found = [*audio_batches(cuts.subset(first=3), 3.0), *audio_batches(cuts.subset(last=2), 3.0)]
    assert any(len(set(batch.lengths.tolist())) > 1 for batch in found)
    return found


def selection_of(model: Any, name: str | None) -> tuple[Any, Any, Any]:
    """The plain model, its axes, and half of one of them."""
    plain = family_of(model).plain(model)
    axes = family_of(plain).axes(plain)
    selection = {axis.name: torch.ones(axis.size, dtype=torch.bool) for axis in axes}
    for axis in axes:
        if axis.name == name:
            selection = halved(axes, axis, magnitude(axes, plain.state_dict()))
    return plain, axes, selection


def kept_of(model: Any, name: str) -> torch.Tensor:
    kept: torch.Tensor = selection_of(model, name)[2][name]
    return kept


def with_zeros(state: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    """A state as wide as the whole model's, zero where members are gone."""
    if kept is None:
        return state
    wide = torch.zeros(*state.shape[:-1], len(kept))
    wide[..., kept] = state
    return wide


def removed_by(model: Any, name: str | None) -> Any:
    """The model with half of an axis really removed; with nothing removed, but built in the same way."""
    plain, axes, selection = selection_of(model, name)
    return build(model, shape_of(axes, selection), remove(axes, plain.state_dict(), selection))


@torch.inference_mode()
def valid_states(model: Any, batches: Any) -> list[torch.Tensor]:
    """Each hidden state, all valid frames of all batches together."""
    family, found = family_of(model), []
    for batch in batches:
        states = family.hidden_states(model, model_inputs(extractor_of(model), batch.waveforms, batch.lengths))
        valid = valid_frames(family.frame_lengths(model, batch.lengths), states[0].shape[1])
        found.append([state[valid] for state in states])
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


QUICK = [("hubert", "base"), ("wavlm", "large"), ("wav2vec2-bert", "base"), ("parakeet", "ctc"), ("nemotron", "rnnt")]


@pytest.mark.parametrize(
    ("family", "style"),
    [variant if variant in QUICK else pytest.param(*variant, marks=pytest.mark.slow) for variant in VARIANTS],
)
def test_the_change_and_the_freed_cost_are_those_of_a_model_really_removed(
    family: str, style: str, batches: Any
) -> None:
    model = tiny_model(family, style)
    rows = measure(model, extractor_of(model), batches)
    assert {row.kind for row in rows} == {axis.kind for axis in family_of(model).axes(family_of(model).plain(model))}
    whole = valid_states(model, batches)
    before = removed_by(model, None)
    of_each_kind: dict[str, AxisSensitivity] = {}
    for row in rows:
        of_each_kind.setdefault(row.kind, row)
    for row in of_each_kind.values():
        removed = removed_by(model, row.axis)
        spread = partial(with_zeros, kept=kept_of(model, "width") if row.kind == "width" else None)
        changes = [
            float((spread(a) - b).norm() / b.norm()) for a, b in zip(valid_states(removed, batches), whole, strict=True)
        ]
        assert row.changes == pytest.approx(changes, rel=1e-4, abs=1e-5), row.axis
        assert (row.last, row.largest) == (row.changes[-1], max(row.changes))
        assert row.last > 0
        assert row.kept == row.members // 2
        for freed, count in ((row.params_freed, count_parameters), (row.macs_freed, count_macs_per_second)):
            assert freed == pytest.approx(1 - count(removed) / count(before), rel=1e-6, abs=1e-9), row.axis


def test_an_axis_whose_members_do_nothing_moves_no_state(batches: Any) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.encoder.layers[1].feed_forward.output_dense.weight.zero_()
    rows = {row.axis: row for row in measure(model, extractor_of(model), batches)}
    assert set(rows["encoder.layers.1.feed_forward.neurons"].changes) == {0.0}
    assert rows["encoder.layers.1.feed_forward"].last > 0  # its bias does something
    assert rows["encoder.layers.1.attention"].changes[:2] == (0.0, 0.0)  # what is before a layer does not hear of it


def test_a_model_compressed_before_and_a_recogniser_can_be_measured(batches: Any) -> None:
    small = removed_by(tiny_model(ctc=True), "encoder.layers.0.attention")
    rows = measure(small, extractor_of(small), batches[:1])
    assert "encoder.layers.0.attention" not in {row.axis for row in rows}
    assert all(row.last > 0 for row in rows)


def test_the_model_itself_is_not_touched(batches: Any) -> None:
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure(model, extractor_of(model), batches[:1])
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_is_asked_of_the_audio_is_taken_and_no_clip_twice(audio_folder: Path) -> None:
    cuts = read_cuts(audio_folder, None)
    assert 2 <= sum(batch.seconds for batch in audio_batches(cuts, 2.0)) < 4
    clips = [cut.id for batch in audio_batches(cuts, 100.0) for cut in batch.cuts]
    assert sorted(clips) == sorted(cuts.ids)


def test_hidden_states_that_are_not_finite_are_refused(batches: Any) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.feature_projection.projection.bias[0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        measure(model, extractor_of(model), batches[:1])


def test_with_out_the_result_and_the_plot_are_kept(teacher_folder: Path, audio_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    result = api.sensitivity(teacher_folder, audio_folder, out, seconds=1, device="cpu", quiet=True)
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result))
    assert "<svg" in (out / "sensitivity.svg").read_text()
    assert sorted(path.name for path in out.iterdir()) == ["result.json", "sensitivity.svg"]


def test_the_plot_has_a_panel_for_every_kind_and_a_line_for_all_that_repeats() -> None:
    def row(axis: str, kind: Any, last: float) -> AxisSensitivity:
        return AxisSensitivity(axis, kind, 4, 2, 0.1, 0.1, last, last, (last,))

    figure = sensitivity_plot(
        [
            row("position.groups", "groups", 0.5),
            row("layers.0.attention", "sublayer", 0.1),
            row("layers.0.feed_forward", "sublayer", 0.2),
            row("layers.1.attention", "sublayer", 0.3),
            row("layers.2.feed_forward", "sublayer", 0.4),
        ]
    )
    lines = [
        {line.get_label(): [tuple(map(float, xy)) for xy in line.get_xydata()] for line in axes.lines}
        for axes in figure.axes
    ]
    assert lines == [
        {"position": [(0, 0.5)]},
        {"attention": [(0, 0.1), (1, 0.3)], "feed forward": [(0, 0.2), (2, 0.4)]},
    ]
