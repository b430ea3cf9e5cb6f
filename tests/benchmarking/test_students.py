"""The benchmark of hand-made students, cut to a micro model and a few steps."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.recogniser_tables import Results
from benchmarks.students import bench, cells, latency, make, table
from benchmarks.students.cells import INPUTS, LOSSES, STUDENTS, WHOLE, Cell, Encoder, Input
from benchmarks.synergy import bench as synergy_bench
from benchmarks.synergy.bench import Places, lay_out

from diminuendo.api import pretrain, source_of
from diminuendo.errors import UserError
from diminuendo.families.filter_bank_input import with_filter_banks
from diminuendo.profiling.count import count_parameters
from diminuendo.training.config import LoopConfig
from diminuendo.training.progress import Diverged

FEW = {"seconds_per_batch": 2.0}
WITH_SIZES = {
    "wer": {"errors": [1, 0, 0, 0, 0, 0], "wer": 0.1, "wer_low": 0.1, "wer_high": 0.2},
    "params": 1.0,
    "macs_per_second": 1e6,
    "cpu_seconds": 60.0,
}
DEV = {Cell(Encoder(student, loss, heard)).name: 0.5 for student in STUDENTS for loss in LOSSES for heard in INPUTS}


@pytest.fixture
def places(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.setattr(synergy_bench, "OTHERS", ())
    monkeypatch.setattr(synergy_bench, "SENTENCES", ("arctic",))
    monkeypatch.setattr(synergy_bench, "UTTERANCES", 20)
    places = Places(speech, tmp_path / "work", tmp_path / "results")
    lay_out(places)
    clusters = {"steps": 4, "num_clusters": 3, "cluster_seconds": 4.0}
    loop = LoopConfig(device="cpu", quiet=True)
    pretrain("micro-hubert", places.unlabelled, tmp_path / "teacher", loop=loop, **FEW, **clusters)
    make.budget.cache_clear()
    for name, value in {
        "TEACHER": tmp_path / "teacher",
        "KEEP": 0.6,
        "STEPS": 6,
        "FRONT_END_STEPS": dict.fromkeys(make.FRONT_END_STEPS, 2),
        "BATCHES": make.BATCHES | FEW,
        "FINE_TUNING": make.FINE_TUNING | FEW | {"steps": 4},
    }.items():
        monkeypatch.setattr(make, name, value)
    return places


def test_encoders_then_recognisers_are_made_once_and_the_table_has_them(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [
        Cell(WHOLE),
        Cell(Encoder("deep-thin", "regression")),
        Cell(Encoder("deep-thin", "both", "fbank")),
        Cell(Encoder("pruned", "discriminative")),
        Cell(Encoder("pruned", "regression", "fbank")),
    ]
    again = [Cell(first[1].encoder, "tenth"), Cell(first[2].encoder, "longer")]
    later = [*again, Cell(WHOLE, "sentences"), Cell(Encoder("shallow-wide", "regression"))]
    seen: list[dict[str, float]] = []
    monkeypatch.setattr(bench, "first", lambda: first)
    monkeypatch.setattr(bench, "then", lambda dev: (seen.append(dict(dev)), later)[1])
    bench.check(places)
    started = bench.jobs(places, first)
    assert set(started) == {"task", "task-sentences", first[0].name, *(cell.encoder.name for cell in first[1:])}
    bench.worker(places, 0)
    encoders = {cell.encoder.name for cell in (*first, *later)} - {WHOLE.name}
    names = {cell.name for cell in (*first, *later)}
    assert {path.stem for path in places.results.glob("*.json")} == {"task", "task-sentences"} | encoders | names
    assert set(seen[-1]) == {cell.name for cell in first}
    before = {path: path.stat().st_mtime_ns for path in places.results.glob("*.json")}
    bench.worker(places, 0)
    bench.check(places)
    assert {path: path.stat().st_mtime_ns for path in places.results.glob("*.json")} == before

    rows = {name: json.loads(places.result(name).read_text()) for name in (*names, *encoders)}
    for heard in INPUTS:
        kept = 1e3 * float(make.budget(make.TEACHER, heard).removeprefix("params=").removesuffix("k"))
        of_input = [row["params"] for name, row in rows.items() if name in encoders and heard in name]
        assert of_input
        assert all(0.7 * kept < size <= kept for size in of_input), (kept, of_input)
    read = table.read(places.results)
    latency.measure(read, places.results)
    trained_and_untrained_are_alike(places, read, first)
    parts = [part for part in table.sections(places.results) if not part.startswith("**")]
    words, answers, tenth, longer, sentences = (part.splitlines() for part in parts)
    assert [line.split(" | ")[0] for line in words[2:]] == [
        "| the teacher, whole",
        "| deep and thin",
        "| shallow and wide",
        "| pruned jointly",
        "| deep and thin",
        "| pruned jointly",
    ]
    assert all(line.split(" | ")[7] for line in words[2:])  # every one is timed
    assert len(answers) == 3  # one pair: plain regression into either student
    assert [len(some) for some in (tenth, longer, sentences)] == [3, 3, 3]
    assert table.missing(places, read) == ([], True)


def test_of_an_encoder_that_diverged_there_is_no_recogniser_and_the_rest_goes_on(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell(Encoder("deep-thin", "regression"))
    monkeypatch.setattr(bench, "first", lambda: [cell])
    monkeypatch.setattr(bench, "then", lambda dev: [])

    def diverges(*_: Any, **__: Any) -> None:
        raise Diverged("the loss is nan")

    monkeypatch.setattr(make, "compress_to_result", diverges)
    bench.worker(places, 0)
    row = json.loads(places.result(cell.name).read_text())
    assert row["failed"] == "its encoder's training diverged"
    bench.check(places)


def test_filter_banks_leave_a_student_its_shape_and_take_what_its_front_end_had(places: Places) -> None:
    teacher = source_of(make.TEACHER).model
    heard: tuple[Input, ...] = ("waveform", "fbank", "fbank-long", "fbank-deep")
    kept = [1e3 * float(make.budget(make.TEACHER, one).removeprefix("params=").removesuffix("k")) for one in heard]
    plain, deep_banks = (
        count_parameters(teacher) - count_parameters(with_filter_banks(teacher, plain=plain)) for plain in (True, False)
    )
    assert 0 != plain < deep_banks
    assert [kept[0] - one for one in kept] == pytest.approx([0, plain, plain, deep_banks], abs=0.01)


def test_an_encoder_that_was_lost_is_made_again_where_a_recogniser_needs_it(places: Places) -> None:
    cell = Cell(Encoder("deep-thin", "regression"))
    places.results.mkdir()
    places.result(cell.encoder.name).write_text("{}")
    assert cell.encoder.name in bench.jobs(places, [cell])
    assert not bench.made(places, cell.encoder.name)
    places.result(cell.name).write_text("{}")
    assert cell.encoder.name not in bench.jobs(places, [cell])
    assert bench.made(places, cell.name)


def test_a_tenth_of_the_texts_is_of_train_alone(places: Places) -> None:
    bench.lay_out_tenth(places)
    rows = [json.loads(line) for line in bench.texts_of(places, "tenth").read_text().splitlines()]
    of_all = [json.loads(line) for line in (places.words / "manifest.jsonl").read_text().splitlines()]
    splits, all_splits = ([row["split"] for row in some] for some in (rows, of_all))
    assert splits.count("train") == 2 == all_splits.count("train") // 10
    for split in ("dev", "test"):
        assert splits.count(split) == all_splits.count(split) > 0
    assert all(Path(row["audio_filepath"]).is_file() for row in rows)


def test_results_of_other_settings_or_another_teacher_are_refused(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell(Encoder("pruned", "both", "fbank"))
    path, teacher = places.result(cell.encoder.name), bench.model_fingerprint(make.TEACHER)
    good = {"settings": make.encoder_settings(cell.encoder), "teacher": teacher}
    places.results.mkdir()
    path.write_text(json.dumps(good))
    bench.check(places)
    for bad, why in (({"teacher": "two"}, "another teacher"), ({"settings": {"steps": 1}}, "other settings")):
        path.write_text(json.dumps(good | bad))
        with pytest.raises(UserError, match=why):
            bench.check(places)


def test_what_follows_is_the_best_on_dev() -> None:
    dev: dict[str, Any] = dict(DEV)
    dev[Cell(Encoder("shallow-wide", "both")).name] = 0.4
    dev[Cell(Encoder("shallow-wide", "discriminative")).name] = 0.35
    dev[Cell(Encoder("shallow-wide", "discriminative", "fbank")).name] = 0.6  # so that both is better in the mean
    dev[Cell(Encoder("pruned", "discriminative", "fbank")).name] = 0.3
    ranked = cells.best(dev)
    assert ranked[0] == Encoder("pruned", "discriminative", "fbank")
    assert ranked[1] == Encoder("shallow-wide", "both")
    following = cells.then(dev)
    assert len(set(following)) == len(following)
    tenth = {cell.encoder for cell in following if cell.text == "tenth"}
    assert tenth == {Encoder("pruned", loss, "fbank", seed) for loss in LOSSES for seed in range(3)}
    for encoder in ranked:
        for heard in INPUTS:
            assert all(Cell(replace(encoder, input=heard, seed=seed)) in following for seed in (1, 2))
            assert all(Cell(replace(encoder, input=heard, seed=seed), "longer") in following for seed in range(3))
        assert Cell(encoder, "sentences") in following
    assert Cell(WHOLE, "longer") in following
    assert following[:3] == [Cell(replace(encoder, input="fbank"), "longer") for encoder in ranked]
    longer = [i for i, cell in enumerate(following) if cell.text == "longer" and cell.encoder.input in INPUTS]
    of_best = [i for i in longer if following[i].encoder.student == "pruned"]
    others = [i for i in longer if following[i].encoder.student != "pruned"]
    assert max(of_best) < min(others[2:])
    assert not set(following) & set(cells.first())


def test_longer_training_is_of_the_same_words_for_more_steps() -> None:
    cell = Cell(Encoder("pruned", "both"))
    longer = replace(cell, text="longer")
    places = Places(Path("speech"), Path("work"), Path("results"))
    assert bench.texts_of(places, longer.text) == bench.texts_of(places, cell.text)
    assert make.fine_tuning(longer) == make.fine_tuning(cell) | {"steps": 4800}


def test_the_best_on_dev_is_compared_with_plain_regression_and_filter_banks_also_at_as_much_time() -> None:
    values = {"wer": {"errors": [1.0] * 6}}
    rows: dict[str, Any] = {
        cell.name: values | {"dev_wer": 0.1 if cell.encoder == Encoder("pruned", "both") else 0.5}
        for cell in cells.first()
    }
    longer = Cell(Encoder("deep-thin", "both", "fbank"), "longer")
    found = Results(rows | {longer.name: values}, torch.full((6,), 2.0), ["a", "b"] * 3, {})
    assert (longer, Cell(Encoder("deep-thin", "both"))) in [(one, other) for _, one, other in table.questions()]
    lines = table.answers(found, [*table.questions(), *table.with_best(found, "words")]).splitlines()
    assert sum("longer" in line for line in lines) == 1
    best = [line.split(" | ")[0] for line in lines if line.startswith("| pruned jointly, both, waveform, than")]
    plain = [f"{table.NAMES[student]}, regression, waveform" for student in ("deep-thin", "shallow-wide")]
    assert {line.partition("than ")[2] for line in best} >= {*plain, table.NAMES["whole"]}
    banks = Encoder("pruned", "both", "fbank")
    of_banks = {other.encoder for _, one, other in table.with_best(found, "longer") if one == Cell(banks, "longer")}
    assert of_banks == {WHOLE, *(Encoder(student, "regression", "fbank") for student in cells.MADE_BY_HAND)}
    long_banks = [Cell(Encoder("pruned", "both", "fbank-long"), text) for text in ("longer", "longest")]
    waveform = Cell(Encoder("pruned", "both"), "longer")
    in_pairs = {(one, other) for _, one, other in table.questions()}
    assert {(one, waveform) for one in long_banks} | {(long_banks[1], replace(waveform, text="longest"))} <= in_pairs
    deep_banks = replace(waveform, encoder=replace(waveform.encoder, input="fbank-deep"))
    assert {(deep_banks, waveform), (deep_banks, long_banks[0])} <= in_pairs
    assert (replace(deep_banks, text="longest"), replace(waveform, text="longest")) in in_pairs
    far = [
        Cell(Encoder("deep-thin", "both", heard, times=4), "longer") for heard in (*table.LEARNED_LONGER, "waveform")
    ]
    before = [replace(cell, encoder=replace(cell.encoder, times=1)) for cell in far]
    assert {(far[0], far[2]), (far[1], far[2]), *zip(far, before, strict=True)} <= in_pairs
    row = table.table("longer", Results({far[0].name: WITH_SIZES}, torch.full((6,), 2.0), ["a", "b"] * 3, {}))
    begin = "| deep and thin | both, 4 times as long distilled | filter banks, longer learned |"
    assert row.splitlines()[2].startswith(begin)
    assert table.answers(found, table.with_best(found, "tenth")) == ""
    asked = [(one, other) for _, one, other in table.losses("tenth")]
    assert (Cell(Encoder("deep-thin", "both"), "tenth"), Cell(Encoder("deep-thin", "regression"), "tenth")) in asked
    assert len(asked) == len(STUDENTS) * len(INPUTS) * (len(LOSSES) - 1)


def test_students_are_compared_over_the_seeds_that_both_have() -> None:
    one, other = Cell(Encoder("pruned", "both")), Cell(Encoder("pruned", "regression"))
    rows: dict[str, Any] = {
        cell.name: {"wer": {"errors": errors, "wer": sum(errors) / 12, "wer_low": 0.1, "wer_high": 0.2}}
        | {"params": 1.0, "macs_per_second": 1e6, "cpu_seconds": 60.0}
        for cell, errors in (
            (one, [1, 0, 0, 0, 0, 0]),
            (other, [1, 1, 1, 0, 0, 0]),
            (replace(other, encoder=replace(other.encoder, seed=1)), [2, 2, 2, 2, 2, 2]),
        )
    }
    rows[one.encoder.name] = {"params": 1.0, "cpu_seconds": 120.0}
    shape = one.name.removesuffix("_words")
    found = Results(rows, torch.full((6,), 2.0), ["a", "b"] * 3, {f"{shape}@1": 20.0, f"{shape}@2": 10.0})
    cell = table.table("words", found).splitlines()[2].split(" | ")
    assert cell[:4] == ["| pruned jointly", "regression", "waveform", "62.5 (10.0 to 20.0; 2 seeds, 25.0 to 100.0)"]
    cell = table.table("words", found).splitlines()[3].split(" | ")
    assert cell[3] == "8.3 (10.0 to 20.0)"
    assert cell[4].startswith("-16.7 (")
    assert cell[5:] == ["1", "1", "20.0", "10.0", "0.0020", "3.0 |"]


def trained_and_untrained_are_alike(places: Places, found: Results, cells: list[Cell]) -> None:
    teacher = source_of(make.TEACHER).model
    for cell in cells:
        trained = source_of(places.work / bench.CELLS / cell.name).model
        untrained = latency.recogniser(found, teacher, cell)
        assert type(untrained) is type(trained)
        assert untrained.config.num_attention_heads == trained.config.num_attention_heads  # no tensor says how many
        shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (untrained, trained)]
        assert shapes[0] == shapes[1], cell.name
