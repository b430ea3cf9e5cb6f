"""The grid of small recognisers, cut to micro models and a few steps."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.synergy import bench, make, table
from benchmarks.synergy.bench import Places
from benchmarks.synergy.cells import MODES, STEPS, Cell, grid
from benchmarks.workers import number_of_workers

from diminuendo.api import compress_config, source_of
from diminuendo.errors import UserError
from diminuendo.export.huggingface import save
from diminuendo.families.measure import build_cost_model
from diminuendo.profiling.count import count_parameters
from diminuendo.pruning.budget import check_budget
from diminuendo.training.configurations import read_configuration
from diminuendo.training.own_prediction import encoder_of, extractor_of
from diminuendo.training.progress import Diverged
from diminuendo.training.removing import free_axes, gateable

REFERENCES = Path(__file__).parents[2] / "benchmarks" / "results" / "references"


@pytest.fixture
def small_bench(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    few = {"seconds_per_batch": 2.0}
    micro = {"full": "micro-parakeet", "streaming": "micro-nemotron", "sentences": "micro-parakeet"}
    monkeypatch.setattr(make, "CONFIGURATION", micro)
    monkeypatch.setattr(make, "PRETRAINING", make.PRETRAINING | few | {"steps": 4})
    monkeypatch.setattr(make, "RECOGNITION", make.RECOGNITION | few | {"predictor_width": 8})
    monkeypatch.setattr(make, "TEACHER", make.TEACHER | {"steps": 4})
    monkeypatch.setattr(make, "FINISHED", make.FINISHED | {"steps": 2})
    for name, value in {"STEPS": 8, "AFTER_REMOVAL": 2, "AGNOSTIC": 4, "AGNOSTIC_AFTER_REMOVAL": 1}.items():
        monkeypatch.setattr(make, name, value)
    monkeypatch.setattr(bench, "OTHERS", ())
    monkeypatch.setattr(bench, "SENTENCES", ("arctic",))
    monkeypatch.setattr(bench, "UTTERANCES", 12)
    cells = [
        Cell("full", "l0", keep=0.6),
        Cell("full", "thin", keep=0.6),
        Cell("full", "l0", fresh=True, keep=0.6),
        Cell("full", "l0", from_teacher=True, keep=0.6),
        Cell("streaming", "l0", distilled=False, agnostic=True, keep=0.6),
        Cell("sentences", "thin", keep=0.6),
    ]
    monkeypatch.setattr(bench, "grid", lambda: cells)
    monkeypatch.setattr(table, "grid", lambda: cells)
    return cells


def test_everything_is_made_once_in_its_order_at_equal_size_and_the_table_has_it(
    speech: Path, tmp_path: Path, small_bench: list[Cell], capsys: pytest.CaptureFixture[str]
) -> None:
    places = Places(speech, tmp_path / "work", tmp_path / "results")
    bench.lay_out(places)
    first, complete = bench.jobs(places, small_bench)
    assert set(first) == {"task", "task-sentences", *(f"pretrained-{mode}" for mode in MODES)}
    assert not complete
    bench.worker(places, 0)
    teachers = {"teacher-full", "teacher-streaming", "teacher-sentences"}
    names = set(first) | teachers
    assert {path.stem for path in places.results.glob("*.json")} == names | {cell.name for cell in small_bench}
    before = {path: path.stat().st_mtime_ns for path in places.results.glob("*.json")}
    bench.worker(places, 0)
    assert {path: path.stat().st_mtime_ns for path in places.results.glob("*.json")} == before

    found = table.read(places.results)
    for cell in small_bench:
        kept = found.rows[cell.name]["params"] / found.rows[f"teacher-{cell.mode}"]["params"]
        assert kept == pytest.approx(cell.keep, abs=0.03)
        if not cell.agnostic:
            started = places.teacher("full") if cell.from_teacher else places.encoder(cell.mode)
            if cell.fresh:
                started = places.work / "cells" / cell.name / "encoder"
            run = json.loads((places.work / "cells" / cell.name / "model" / "run.json").read_text())
            assert run["source"] == str(started)
    errors = found.errors(small_bench[0].name, "wer")
    wer = found.rows[small_bench[0].name]["wer"]
    assert float(errors.sum() / found.words.sum()) == pytest.approx(wer["wer"])
    assert len(found.speakers) == len(errors) == wer["clips"]

    table.measure_latency(found, places.work, places.results)
    found = table.read(places.results)
    assert set(found.latency) == {*teachers, *(cell.name for cell in small_bench)}
    text = table.table("full", found)
    assert len(text.splitlines()) == 7
    assert "| thin student, distilled |" in text
    (late,) = (line.split(" | ") for line in text.splitlines() if "from the teacher's weights" in line)
    assert late[3].endswith(" %")  # than the thin student
    assert table.missing(found) == []
    read = table.read(places.results, "task-sentences")
    assert read.words.tolist() == [11]  # phones
    (line,) = table.table("sentences", read).splitlines()[3:]
    assert line.startswith("| thin student, distilled | ")
    table.plot(found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_an_untrained_encoder_is_of_the_kind_and_not_of_the_weights_of_the_trained_one(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = read_configuration("micro-parakeet")
    trained = encoder_of(config)
    save(trained, extractor_of(config), tmp_path / "trained")
    paths = [make.untrained(tmp_path / "trained", tmp_path / name) for name in ("one", "other")]
    one, other = (source_of(path).model for path in paths)
    assert make.untrained(tmp_path / "trained", paths[0]) == paths[0]  # what is there stays
    same = [torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)]
    assert all(same)
    drawn = [name for name, weight in one.named_parameters() if len(weight.unique()) > 1]
    assert drawn
    assert not [name for name in drawn if torch.equal(one.get_parameter(name), trained.get_parameter(name))]
    configurations = [(path / "config.json").read_bytes() for path in (tmp_path / "trained", *paths)]
    assert configurations[0] == configurations[1] == configurations[2]


def test_cells_have_names_of_their_own_and_as_many_steps_and_seconds_a_step() -> None:
    names = [cell.name for cell in grid()]
    assert len(set(names)) == len(names)
    for cell in grid():
        settings = make.settings_of(cell)
        runs = [settings["compression"], settings["recognition"]] if cell.agnostic else [settings]
        assert sum(run["steps"] + run.get("distil_steps", 0) for run in runs) == STEPS
        assert {run["seconds_per_batch"] for run in runs} == {make.RECOGNITION["seconds_per_batch"]}
        assert {run["seed"] for run in runs} == {cell.run_seed}


def test_no_cell_asks_for_less_than_what_cannot_go() -> None:
    models = {path.name: source_of(path).model for path in REFERENCES.iterdir() if path.is_dir()}
    # Whatever it begins with, what one run makes smaller is as large as the teacher: an encoder comes with a head.
    asked = {(cell.mode, cell.method, cell.agnostic, cell.keep): cell for cell in grid() if cell.method != "thin"}
    for cell in asked.values():
        whole, encoder = models[f"teacher-{cell.mode}"], models[f"pretrained-{cell.mode}"]
        sizes = count_parameters(whole), count_parameters(encoder)
        settings, model, total = make.settings_of(cell), whole, sizes[0]
        keep = f"params={cell.keep}"
        if cell.agnostic:
            settings, model, total = settings["compression"], encoder, sizes[1]
            keep = make.encoder_budget(cell, *sizes)
        config = compress_config(make.recipe_of(cell), **settings | {"keep": keep})
        plain = gateable(model, factored=config.factored, meta=True)
        cost = build_cost_model(plain, free_axes(plain, config.fixed_kinds, head=config.head_free))
        check_budget(cost, config.budget, total, config.round_to)


def test_results_of_other_settings_or_another_teacher_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places, cell = Places(tmp_path, tmp_path, tmp_path), Cell("full", "l0")
    found = {"settings": make.settings_of(cell), "teacher": "one"}
    places.result(cell.name).write_text(json.dumps(found))
    untaught, late = (Cell("full", "l0", distilled=False, from_teacher=late) for late in (False, True))
    places.result(untaught.name).write_text(json.dumps({"settings": make.settings_of(untaught)}))
    bench.check(places, grid())
    places.teacher("full").mkdir()
    monkeypatch.setattr(bench, "model_fingerprint", lambda *_: "two")
    bench.check(places, [untaught])
    places.result(late.name).write_text(json.dumps({"settings": make.settings_of(late), "teacher": "one"}))
    with pytest.raises(UserError, match="another teacher"):
        bench.check(places, [late])
    with pytest.raises(UserError, match="another teacher"):
        bench.check(places, grid())
    places.result(cell.name).write_text(json.dumps(found | {"settings": found["settings"] | {"steps": 1}}))
    with pytest.raises(UserError, match="other settings"):
        bench.check(places, grid())


def test_a_cell_that_diverges_is_an_answer_and_other_errors_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: Exception) -> None:
        def made(*_: Any) -> None:
            raise error

        monkeypatch.setattr(make, "cell", made)

    places, cell = Places(tmp_path, tmp_path, tmp_path), Cell("full", "l0")
    monkeypatch.setattr(bench, "model_fingerprint", lambda *_: "one")
    places.result("teacher-full").write_text("{}")
    places.teacher("full").mkdir()
    jobs, _ = bench.jobs(places, [cell])
    fail(Diverged("not finite"))
    assert jobs[cell.name]()["failed"] == "not finite"
    fail(RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        jobs[cell.name]()


def test_differences_are_of_the_same_clips() -> None:
    cells = (Cell("full", "l0"), Cell("full", "l0", distilled=False))
    errors = ([1, 0, 0, 1, 0, 0], [1, 1, 0, 1, 1, 0])
    rows = {
        cell.name: {"wer": {"errors": wrong, "wer": sum(wrong) / 12}} for cell, wrong in zip(cells, errors, strict=True)
    }
    found = table.Results(rows, torch.full((6,), 2.0, dtype=torch.float64), list("abcdef"), {})
    (line,) = table.paired("full", found).splitlines()[2:]
    assert line.startswith("| L0: together without distillation | +16.7 (")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="librispeech_unlabelled"):
        bench.lay_out(Places(tmp_path, tmp_path, tmp_path))


def test_a_teacher_is_made_again_where_only_its_result_was_kept(tmp_path: Path) -> None:
    places, cell = Places(tmp_path, tmp_path, tmp_path / "results"), Cell("full", "l0")
    places.results.mkdir()
    for name in ("pretrained-full", "teacher-full", cell.name):
        places.result(name).write_text("{}")
    assert [places.made(name) for name in ("pretrained-full", "teacher-full", cell.name)] == [False, False, True]
    assert cell.name not in bench.jobs(places, [cell])[0]
    for path in (places.encoder("full"), places.teacher("full")):
        path.mkdir()
    assert cell.name in bench.jobs(places, [cell])[0]
    assert places.made("teacher-full")


def test_models_that_are_kept_are_taken_and_none_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "model_fingerprint", lambda model: (model / "weights").read_text())
    kept, places = tmp_path / "kept", Places(tmp_path, tmp_path / "work", tmp_path / "results")
    names = ["teacher-full", "teacher-streaming"]
    with pytest.raises(UserError, match="expected folders like teacher-full"):
        bench.take(kept, names, places)
    for name in ("teacher-full", "pretrained-full"):
        (kept / name).mkdir(parents=True)
        (kept / name / "weights").write_text("1.0")
        (kept / f"{name}.json").write_text("{}")
    for _ in range(2):
        bench.take(kept, names, places)
        assert [path.name for path in places.work.iterdir()] == ["teacher-full"]
        assert [path.name for path in places.results.iterdir()] == ["teacher-full.json"]
    assert (places.teacher("full") / "weights").read_text() == "1.0"
    for changed in (places.teacher("full") / "weights", places.result("teacher-full")):
        before = changed.read_text()
        changed.write_text("2.0")
        with pytest.raises(UserError, match="is not that of --references"):
            bench.take(kept, names, places)
        assert changed.read_text() == "2.0"
        changed.write_text(before)


@pytest.mark.parametrize("text", ["0", "-1", "two"])
def test_less_than_one_worker_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"at least 1; got {text}"):
        number_of_workers(text)
