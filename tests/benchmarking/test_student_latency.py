"""Latencies of the study of students, of models that are made again from its results."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.recogniser_tables import Results
from benchmarks.record import RESULTS
from benchmarks.students import latency, make, table
from benchmarks.students.cells import LOSSES, WHOLE, Cell, Encoder

from diminuendo.api import source_of
from diminuendo.errors import UserError
from diminuendo.families.filter_bank_input import hears_filter_banks


@pytest.mark.parametrize(("params", "macs"), [(2_461_331, 206787782.0), (2_461_332, 206787782.4), (5, 1.0)])
def test_a_latency_is_not_measured_of_another_shape_than_the_results(
    params: int, macs: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"{Cell(WHOLE).name}.json").write_text(json.dumps({"params": params, "macs_per_second": macs}))
    (tmp_path / "latency.json").write_text(kept := json.dumps({"p50_ms": {"whole_waveform@1": 50.0}}))
    monkeypatch.setattr("sys.argv", ["table", "--results", str(tmp_path), "--latency"])
    with pytest.raises(SystemExit) as stopped:
        table.main()
    assert stopped.value.code == 2
    message = f"whole_none_waveform_seed-0_words: expected {params:,} parameters and {macs:,.0f} MACs/s"
    assert message in capsys.readouterr().err
    assert (tmp_path / "latency.json").read_text() == kept


def test_every_shape_of_the_kept_results_is_made_again() -> None:
    found, teacher = table.read(RESULTS / "students"), source_of(make.TEACHER).model
    heard = set()
    for cell in latency.timed(found).values():
        model = latency.recogniser(found, teacher, cell)
        assert hears_filter_banks(model) == (cell.encoder.input != "waveform")
        assert not model.training
        heard.add((cell.encoder.student, cell.encoder.input))
    assert len(heard) > 8


def test_every_shape_is_timed_on_ten_seconds_with_one_and_two_threads_by_what_it_hears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[str, bool, float]] = []

    def hearing(model: Any, extractor: Any, seconds: float) -> int:
        heard.append((extractor.model_input_names[0], hears_filter_banks(model), seconds))
        return len(heard)

    def median_ms(passes: dict[str, int], runs: int, threads: int) -> dict[str, float]:
        return {name: number / threads for name, number in passes.items()}

    monkeypatch.setattr(latency, "hearing", hearing)
    monkeypatch.setattr(latency, "median_ms", median_ms)
    found = table.read(RESULTS / "students")
    latency.measure(found, tmp_path)
    assert set(heard) == {("input_values", False, 10.0), ("input_features", True, 10.0)}
    shapes = latency.timed(found)
    expected = {f"{name}@{threads}": i / threads for i, name in enumerate(shapes, 1) for threads in (1, 2)}
    assert json.loads((tmp_path / "latency.json").read_text())["p50_ms"] == expected


def test_of_no_results_or_without_an_encoders_no_latency_is_measured(tmp_path: Path) -> None:
    (folder := tmp_path / "results").mkdir()
    with pytest.raises(UserError, match="expected recognisers of words"):
        latency.measure(table.read(folder), folder)
    name = Cell(Encoder("pruned", "both")).name
    (folder / f"{name}.json").write_text(json.dumps({"params": 1, "macs_per_second": 2.0}))
    with pytest.raises(UserError, match="expected encoder_pruned_both_waveform_seed-0"):
        latency.measure(table.read(folder), folder)
    assert [path.name for path in folder.iterdir()] == [f"{name}.json"]


def test_students_made_by_hand_have_one_latency_for_an_input_and_pruned_ones_their_own() -> None:
    made = [Cell(Encoder("deep-thin", loss, seed=seed), "longer") for loss in LOSSES for seed in (0, 2)]
    pruned = [Cell(Encoder("pruned", "both", seed=seed)) for seed in (0, 1)]
    rows = {cell.name: {"params": 1, "macs_per_second": 2} for cell in (*made, *pruned)}
    found = Results(rows, torch.zeros(0), [], {"deep-thin_waveform@1": 3.0, "pruned_both_waveform_seed-1@1": 4.0})
    assert latency.timed(found) == {
        "deep-thin_waveform": replace(made[0], encoder=replace(made[0].encoder, loss="regression")),
        **{cell.name.removesuffix("_words"): cell for cell in pruned},
    }
    assert [latency.latency_ms(found, cell.encoder, 1) for cell in (*made, *pruned)] == [3.0] * 6 + [4.0] * 2
    assert latency.latency_ms(found, Encoder("deep-thin", "both", "fbank"), 1) is None
    rows[made[1].name]["params"] = 5
    with pytest.raises(UserError, match="are to be of one shape"):
        latency.timed(found)
