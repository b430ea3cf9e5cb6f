"""The benchmark of halved conformer recognisers, cut to micro models and a few steps."""

import json
from pathlib import Path

import pytest
import torch
from benchmarks import recogniser_tables
from benchmarks.conformer import bench, make, table
from benchmarks.conformer.cells import KINDS, MACS, STEPS, Cell, grid
from benchmarks.recogniser_tables import Results
from benchmarks.synergy import bench as synergy_bench
from benchmarks.synergy import make as synergy_make
from benchmarks.synergy.bench import Places, lay_out

from diminuendo.errors import UserError

PARAKEET, WAV2VEC2 = "teacher-full", "teacher-wav2vec2-conformer"


@pytest.fixture
def small_cells(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    few = {"seconds_per_batch": 2.0}
    monkeypatch.setattr(synergy_make, "CONFIGURATION", {"full": "micro-parakeet"})
    monkeypatch.setattr(synergy_make, "PRETRAINING", synergy_make.PRETRAINING | few | {"steps": 2})
    monkeypatch.setattr(synergy_make, "RECOGNITION", synergy_make.RECOGNITION | few | {"predictor_width": 8})
    monkeypatch.setattr(synergy_make, "TEACHER", synergy_make.TEACHER | {"steps": 2})
    monkeypatch.setattr(synergy_make, "FINISHED", synergy_make.FINISHED | {"steps": 2})
    monkeypatch.setattr(synergy_bench, "OTHERS", ())
    monkeypatch.setattr(synergy_bench, "SENTENCES", ())
    monkeypatch.setattr(synergy_bench, "UTTERANCES", 12)
    monkeypatch.setattr(make, "CONFIGURATION", "micro-wav2vec2-conformer")
    clusters = {"steps": 4, "num_clusters": 3, "cluster_seconds": 4.0}
    monkeypatch.setattr(make, "PRETRAINING", make.PRETRAINING | few | clusters)
    monkeypatch.setattr(make, "RECOGNITION", make.RECOGNITION | few)
    monkeypatch.setattr(make, "BEGUN", make.BEGUN | {"steps": 2})
    for name in ("FINISHED", "AGAIN", "FINISHED_AGAIN"):
        monkeypatch.setattr(make, name, getattr(make, name) | {"steps": 2})
    for name, steps in {"STEPS": 8, "AFTER_REMOVAL": 2}.items():
        monkeypatch.setattr(make, name, dict.fromkeys(KINDS, steps))
    monkeypatch.setattr(make, "SECONDS_PER_BATCH", 2.0)
    monkeypatch.setattr(recogniser_tables, "PASSES", 1)
    cells = [
        Cell("parakeet", "whole"),
        Cell("parakeet", "l0", "free"),
        Cell("parakeet", "taylor", budget=MACS),
        Cell("wav2vec2-conformer", "whole"),
        Cell("wav2vec2-conformer", "l0"),
        Cell("wav2vec2-conformer", "layerdrop"),
    ]
    monkeypatch.setattr(bench, "grid", lambda: cells)
    monkeypatch.setattr(table, "grid", lambda: cells)
    return cells


def test_teachers_then_cells_are_made_once_and_the_table_of_each_recogniser_has_them(
    speech: Path, tmp_path: Path, small_cells: list[Cell]
) -> None:
    places = Places(speech, tmp_path / "work", tmp_path / "results")
    lay_out(places)
    first, complete = bench.jobs(places, small_cells)
    assert (set(first), complete) == ({"task", "pretrained-full", "pretrained-wav2vec2-conformer"}, False)
    bench.worker(places, 0)
    made = {path.stem for path in places.results.glob("*.json")}
    names = {cell.name for cell in small_cells}
    assert made == set(first) | {PARAKEET, WAV2VEC2} | names
    before = {path: path.stat().st_mtime_ns for path in places.results.glob("*.json")}
    bench.worker(places, 0)
    assert {path: path.stat().st_mtime_ns for path in places.results.glob("*.json")} == before
    bench.check(places, small_cells)

    found = table.read(places.results)
    for cell in small_cells:
        row, teacher = found.rows[cell.name], found.rows[bench.TEACHERS[cell.kind]]
        key = "macs_per_second" if cell.budget == MACS else "params"
        kept = row[key] / teacher[key]
        assert kept == 1 if cell.method == "whole" else 0.3 < kept <= 0.5
        errors = found.errors(cell.name, "wer")
        assert float(errors.sum() / found.words.sum()) == pytest.approx(row["wer"]["wer"])

    table.measure_latency(found, places.work, places.results)
    found = table.read(places.results)
    assert set(found.latency) == {PARAKEET, WAV2VEC2, *names}
    lines = table.table("wav2vec2-conformer", found).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| the teacher",
        "| the whole recogniser, trained on",
        "| L0, fixed matching, half of the parameters",
        "| layer dropping, half of the parameters",
    ]
    assert {line.count(" | ") for line in lines} == {len(table.HEAD) - 1}
    assert table.missing(found) == []


def test_a_teacher_that_is_there_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places(tmp_path, tmp_path, tmp_path / "results")
    (tmp_path / PARAKEET).mkdir()
    monkeypatch.setattr(make, "measured", lambda model, words: {"measured": model.name})
    ready, complete = bench.jobs(places, grid())
    assert (set(ready), complete) == ({"task", PARAKEET, "pretrained-wav2vec2-conformer"}, False)
    assert ready[PARAKEET]() == {"measured": PARAKEET}
    (tmp_path / WAV2VEC2).mkdir()  # one that was kept
    ready, complete = bench.jobs(places, grid())
    assert (set(ready), complete) == ({"task", PARAKEET, WAV2VEC2}, False)
    assert ready[WAV2VEC2]() == {"measured": WAV2VEC2}


def test_every_halved_or_whole_recogniser_has_as_many_steps_of_as_much_audio_and_begins_at_one_rate() -> None:
    assert len({cell.name for cell in grid()}) == len(grid())
    for cell in grid():
        settings = make.settings_of(cell)
        assert settings["steps"] + settings.get("distil_steps", 0) == STEPS[cell.kind]
        assert settings["seconds_per_batch"] == 15.0
        assert settings["seed"] == cell.run_seed
        first = "learning_rate" if cell.method in ("l0", "whole") else "distil_learning_rate"
        assert settings[first] == make.RATE[cell.kind]
        assert cell.matching == "fixed" or cell.method == "l0"
        assert cell.budget != MACS or cell.method in ("l0", "taylor")


def test_halved_recognisers_of_other_settings_or_another_teacher_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places, cell = Places(tmp_path, tmp_path, tmp_path), Cell("parakeet", "l0")
    found = {"settings": make.settings_of(cell), "teacher": "one"}
    places.result(cell.name).write_text(json.dumps(found))
    bench.check(places, grid())
    bench.teacher_of(places, "parakeet").mkdir()
    monkeypatch.setattr(bench, "model_fingerprint", lambda _: "two")
    with pytest.raises(UserError, match="another teacher"):
        bench.check(places, grid())
    places.result(cell.name).write_text(json.dumps(found | {"settings": found["settings"] | {"steps": 1}}))
    with pytest.raises(UserError, match="other settings"):
        bench.check(places, grid())


def test_a_halved_recogniser_is_compared_with_the_teacher_and_with_the_mean_of_the_whole_ones() -> None:
    errors = {
        PARAKEET: [1, 1, 0, 0, 0, 0],
        Cell("parakeet", "whole").name: [1, 0, 0, 0, 0, 0],
        Cell("parakeet", "whole", seed=1).name: [1, 1, 1, 0, 0, 0],
        Cell("parakeet", "l0").name: [1, 1, 1, 0, 0, 0],
    }
    rows = {
        name: {
            "wer": {"errors": wrong, "wer": sum(wrong) / 12, "wer_low": 0.1, "wer_high": 0.2},
            "params": 2.0 if name == PARAKEET else 1.0,
            "macs_per_second": 4e6 if name == PARAKEET else 1e6,
            "cpu_seconds": 60.0,
        }
        for name, wrong in errors.items()
    }
    words = torch.full((6,), 2.0, dtype=torch.float64)
    latency = {PARAKEET: 20.0, Cell("parakeet", "l0").name: 15.0}
    text = table.table("parakeet", Results(rows, words, list("abcdef"), latency))
    teacher, whole, halved = ([cell.strip() for cell in line[2:-2].split(" | ")] for line in text.splitlines()[2:])
    assert teacher[-7:] == ["2", "100.0%", "4.0", "100.0%", "20.0", "0%", ""]
    assert whole[1] == "16.7 (10.0 to 20.0; 2 seeds, 8.3 to 25.0)"
    assert [cell.split(" (")[0] for cell in whole[2:6]] == ["+0.0", "", "", ""]
    assert halved[1] == "25.0 (10.0 to 20.0)"
    assert [halved[place].split(" (")[0] for place in (2, 3, 5)] == ["+8.3", "+8.3", "+50.0"]
    assert halved[-7:] == ["1", "50.0%", "1.0", "25.0%", "15.0", "25%", "1.0"]


def test_of_too_few_clips_there_is_no_interval() -> None:
    few, enough = (torch.tensor([[1.0, 2.0]] * clips, dtype=torch.float64) for clips in (4, 5))
    assert recogniser_tables.ratio_interval(few) == "no interval"
    assert recogniser_tables.ratio_interval(enough) == "+50.0 to +50.0"
