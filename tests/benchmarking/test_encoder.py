"""The comparison of methods on real speech: what is compared is comparable."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from benchmarks.encoder import __main__ as entry
from benchmarks.encoder import bench, cells, make, pretraining, probe, table
from benchmarks.encoder.bench import Places
from benchmarks.encoder.cells import ABLATIONS, COMPARED, RATES, SAME_START, STEPS, Cell, comparison, tuning
from benchmarks.encoder.corpus import prepare, training_manifest
from benchmarks.workers import run_workers

from diminuendo.data.manifest import read_cuts
from diminuendo.errors import UserError
from diminuendo.evaluation.probes import HeadConfig
from diminuendo.profiling.count import count_parameters
from diminuendo.pruning.budget import parse_budget
from diminuendo.students.shape import NAMED
from diminuendo.students.student import make_student
from diminuendo.training.configurations import read_configuration
from diminuendo.training.own_prediction import encoder_of
from diminuendo.training.progress import Diverged

RATES_FOUND: Any = dict.fromkeys(COMPARED, 1e-3)


def test_every_method_has_as_many_tries_seeds_and_steps() -> None:
    cells = [*tuning(), *comparison(RATES_FOUND)]
    assert len({cell.name for cell in cells}) == len(cells)
    for select in (
        lambda cell: cell.keep == 0.25 and cell.seed == 0,
        lambda cell: cell.keep == 0.25 and cell.seed > 0,
        lambda cell: cell.keep not in (0.25, 1.0),
    ):
        plain = [cell for cell in cells if not cell.ablation and cell.audio == 1 and cell.steps == STEPS]
        counts = [sum(cell.method == method for cell in plain if select(cell)) for method in COMPARED]
        assert len(set(counts)) == 1
        assert counts[0] >= 2
    for ablation in ("", *ABLATIONS):
        config = make.joint_config(Cell("joint", 1e-3, ablation=ablation))
        assert config.steps + config.second_stage_steps == STEPS


@pytest.mark.parametrize("keep", [0.125, 0.25, 0.5])
def test_students_of_a_fixed_shape_fill_the_budget(keep: float) -> None:
    teacher = encoder_of(read_configuration("tiny-hubert"))
    total = count_parameters(teacher)
    for student in (
        make_student(teacher, NAMED["thin"], keep * total).model,
        make.one_shot(teacher, parse_budget(f"params={keep}")),
    ):
        assert 0.995 * keep <= count_parameters(student) / total <= keep


def test_one_shot_removal_takes_the_same_fraction_of_every_axis_or_leaves_a_kind_alone() -> None:
    teacher = encoder_of(read_configuration("tiny-hubert"))
    budget = parse_budget("params=0.5")
    shape = make.one_shot(teacher, budget).config.diminuendo["shape"]
    assert {kept for name, kept in shape.items() if name.endswith(".heads")} == {2}
    assert len({kept for name, kept in shape.items() if name.endswith(".channels")}) == 1
    kept = make.one_shot(teacher, budget, fixed=("channels", "groups")).config.diminuendo["shape"]
    assert {value for name, value in kept.items() if name.endswith(".channels")} == {64}
    assert kept["encoder.layers.0.feed_forward.neurons"] < shape["encoder.layers.0.feed_forward.neurons"]


def test_a_learned_shape_is_cut_from_the_largest_members() -> None:
    teacher = encoder_of(read_configuration("tiny-hubert"))
    shape = make.one_shot(teacher, parse_budget("params=0.3")).config.diminuendo["shape"]
    shape["encoder.layers.0.attention"] = shape["encoder.layers.0.attention.heads"] = 0
    assert make.in_shape(teacher, shape).config.diminuendo["shape"] == shape
    thin = make_student(teacher, NAMED["thin"], 0.3 * count_parameters(teacher)).model
    again = make.in_shape(teacher, bench.shape_in(thin.config))
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in thin.state_dict().items()
    }


def test_a_methods_rate_is_the_best_on_dev_once_all_are_tried(tmp_path: Path) -> None:
    for rate, accuracy in zip(RATES, (0.5, 0.7, 0.6, 0.4, 0.3), strict=True):
        assert bench.best_rates(tmp_path) == {}
        scores = {task: {"dev_accuracy": accuracy} for task in ("keyword", "speaker")}
        (tmp_path / f"{Cell('fixed', rate).name}.json").write_text(json.dumps(scores))
    assert bench.best_rates(tmp_path) == {"fixed": RATES[1]}


def test_a_learned_shape_is_waited_for_until_joints_rate_is_known(tmp_path: Path) -> None:
    cell = Cell("learned-shape-fresh", 1e-3)
    for number, rate in enumerate(RATES):
        assert bench.learned_shape(tmp_path, cell) is None
        scores = {task: {"dev_accuracy": number / 10} for task in ("keyword", "speaker")}
        for method in ("fixed", "joint"):
            (tmp_path / f"{Cell(method, rate).name}.json").write_text(json.dumps(scores | {"shape": {"axis": number}}))
    assert bench.learned_shape(tmp_path, cell) == {"axis": len(RATES) - 1}
    assert bench.learned_shape(tmp_path, replace(cell, seed=1)) is None


def _fail_or_wait(places: Places, number: int) -> None:
    time.sleep(300 * number)
    raise SystemExit(3)


def test_a_failing_worker_ends_the_others(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(SystemExit, match="1"):
        run_workers(_fail_or_wait, 2, Places(tmp_path, tmp_path, tmp_path, tmp_path))
    assert time.monotonic() - started < 200


def test_a_fraction_of_the_audio_is_taken_from_every_folder_and_no_test_clip(tmp_path: Path) -> None:
    for name, splits in (("with", ["train", "test"]), ("without", [None])):
        (tmp_path / name).mkdir()
        rows = [{"audio_filepath": f"{s}{i}.wav", "duration": 1.0} | {"split": s} for s in splits for i in range(10)]
        rows = [{key: value for key, value in row.items() if value is not None} for row in rows]
        (tmp_path / name / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = [json.loads(line)["audio_filepath"] for line in training_manifest(tmp_path, 0.3).open()]
    assert [sum(file.startswith(f"{name}/") for file in chosen) for name in ("with", "without")] == [3, 3]
    assert not any("test" in file for file in chosen)
    assert len(training_manifest(tmp_path).read_text().splitlines()) == 20


def test_a_folder_without_the_probes_clips_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "speech").mkdir()
    with pytest.raises(UserError, match="arabic_commands among them"):
        prepare(tmp_path / "speech", tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_audio_is_decoded_once_and_unusable_clips_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "speech" / "arabic_commands"
    folder.mkdir(parents=True)
    soundfile.write(folder / "a.flac", torch.randn(8_000).numpy() / 10, 8_000)
    (folder / "b.flac").write_bytes(b"fLaC")
    rows = [{"audio_filepath": f"{name}.flac", "duration": 1.0, "keyword": name} for name in "ab"]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for _ in range(2):
        audio = prepare(tmp_path / "speech", tmp_path / "work")
    found = [json.loads(line) for line in (audio / "arabic_commands" / "manifest.jsonl").open()]
    assert [row["keyword"] for row in found] == ["a"]
    assert soundfile.info(audio / "arabic_commands" / found[0]["audio_filepath"]).samplerate == 16_000


@pytest.fixture
def small_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """The grid cut to one rate, six steps and a small teacher."""
    monkeypatch.setattr(bench, "RATES", (1e-3,))
    monkeypatch.setattr(cells, "STEPS", 6)
    monkeypatch.setattr(table, "STEPS", 6)
    monkeypatch.setattr(table, "PLAIN", ("", 1.0, 6))
    monkeypatch.setattr(Cell.__init__, "__defaults__", (0.25, 0, 1.0, 6, ""))
    monkeypatch.setattr(bench, "tuning", lambda: [Cell(method, 1e-3) for method in COMPARED])
    monkeypatch.setattr(
        bench, "comparison", lambda rates: [Cell(m, 1e-3) for m in SAME_START.values()] if rates else []
    )
    monkeypatch.setattr(make, "BATCHES", make.BATCHES | {"seconds_per_batch": 2.0})
    monkeypatch.setattr(pretraining, "ENCODER", "demo-hubert")
    short = replace(pretraining.PRETRAINING, steps=8, seconds_per_batch=2.0, cluster_seconds=6.0, num_clusters=8)
    monkeypatch.setattr(pretraining, "PRETRAINING", short)
    quick = HeadConfig(learning_rates=(0.1,), steps=20)
    monkeypatch.setattr(probe, "run_probe", partial(probe.run_probe, head_config=quick))


def commands(folder: Path) -> Path:
    """Tones as keywords, of seven speakers, in the folder of the real ones."""
    target = folder / "arabic_commands"
    target.mkdir(parents=True)
    rows = []
    for speaker, split in enumerate(["train"] * 5 + ["dev", "test"]):
        for take in range(10):
            tone = torch.sin(torch.arange(4_000) * (0.1 + 0.2 * (take % 2))) * (speaker + 1) / 10
            soundfile.write(target / f"{speaker}_{take}.wav", tone.numpy(), 16_000)
            row = {"audio_filepath": f"{speaker}_{take}.wav", "duration": 0.25, "split": split, "take": take + 1}
            rows.append(row | {"speaker": f"s{speaker}", "keyword": str(take % 2)})
    (target / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def places(folder: Path) -> Places:
    """Recordings, and what is pretrained before workers start, by one process."""
    speech, work = commands(folder / "speech"), folder / "work"
    cuts = read_cuts(training_manifest(prepare(speech, work)), None)
    pretraining.make_teacher(cuts, work / "teacher")
    pretraining.make_teacher(cuts, work / "warmed-up", warm_up_only=True)
    return Places(speech, work, work / "teacher", folder / "results")


@pytest.mark.usefixtures("small_bench")
def test_what_is_pretrained_is_launched_once_by_as_many_processes_as_its_recipe_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = training_manifest(prepare(commands(tmp_path / "speech"), tmp_path / "work"))
    launched = []

    def run(command: list[str], **_: Any) -> Any:
        launched.append(command)
        monkeypatch.setattr(sys, "argv", command[command.index("benchmarks.encoder.pretraining") :])
        pretraining.main()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    for _ in range(2):
        pretraining.launch(manifest, tmp_path / "warmed-up", warm_up_only=True)
    assert len(launched) == 1
    with pytest.raises(UserError):
        pretraining.launch(manifest, tmp_path / "warmed-up")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    with pytest.raises(SystemExit):
        pretraining.launch(manifest, tmp_path / "teacher")
    assert launched[0][1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = json.loads((tmp_path / "warmed-up" / "result.json").read_text())
    assert result["steps"] == {"front_end": pretraining.PRETRAINING.stage_steps["front_end"]} | dict.fromkeys(
        ("iteration_1", "iteration_2"), 0
    )


@pytest.mark.parametrize("given", [True, False])
def test_a_teacher_is_pretrained_unless_one_is_given_and_its_warm_up_goes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    done: list[str] = []
    monkeypatch.setattr(entry.signal, "signal", lambda *_: None)  # of this process, for good
    monkeypatch.setattr(entry, "prepare", lambda speech, work: work)
    monkeypatch.setattr(entry, "training_manifest", lambda audio: audio)
    monkeypatch.setattr(entry, "Bench", lambda places: done.append(f"look at {places.teacher.name}"))
    monkeypatch.setattr(entry, "run_workers", lambda worker, workers, places: done.append(f"{workers} workers"))
    monkeypatch.setattr(pretraining, "launch", lambda manifest, out, **_: done.append(f"train {out.name}"))
    words = ["encoder", "speech", "--work", str(tmp_path), "--workers", "2"]
    monkeypatch.setattr(sys, "argv", [*words, "--teacher", "kept"] if given else words)
    entry.main()
    first = ["look at kept"] if given else ["train teacher", "look at teacher"]
    assert done == [*first, "2 workers", "train warmed-up", "1 workers"]
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "warmed-up.json").write_text("{}")
    done.clear()
    entry.main()
    assert done == [*first, "2 workers"]


@pytest.mark.usefixtures("small_bench")
def test_a_worker_makes_and_probes_everything_once_and_the_results_are_of_one_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = places(tmp_path)
    kept, teacher = there.results, there.teacher
    bench.worker(there, 0)
    found = table.results(kept)
    assert {row["cell"]["method"] for row in found.values() if "cell" in row} == {*COMPARED, *SAME_START.values()}
    assert {name for name, row in found.items() if "cell" not in row} == set(table.REFERENCES)
    assert len({row["teacher"] for row in found.values()}) == 1
    of = {row["cell"]["method"]: row for row in found.values() if "cell" in row}
    assert of["learned-shape"]["shape"] == of["learned-shape-fresh"]["shape"] == of["joint"]["shape"]
    assert of["learned-shape"]["final_loss"] != of["learned-shape-fresh"]["final_loss"]
    assert of["fixed"]["shape"].keys() == {"hidden_size", "intermediate_size"}
    assert {of[m]["config"]["seed"] for m in COMPARED} == {10}
    assert {row["never_heard"] for row in found.values()} != {0.0}
    times = {path: path.stat().st_mtime_ns for path in kept.iterdir()}
    bench.worker(there, 1)
    assert times == {path: path.stat().st_mtime_ns for path in kept.iterdir()}
    plot = tmp_path / "plot.png"
    monkeypatch.setattr(
        sys, "argv", ["table", "--results", str(kept), "--teacher", str(teacher), "--latency", "--plot", str(plot)]
    )
    table.main()
    models, differences, shapes = capsys.readouterr().out.split("\n\n")
    assert len(models.splitlines()) == 2 + len(found)
    assert len(differences.splitlines()) == 2 + len(COMPARED) - 1 + 2 * len(SAME_START)
    assert len(shapes.splitlines()) == 3
    assert plot.stat().st_size > 10_000
    assert len(json.loads((kept / "latency.json").read_text())["p50_ms"]) == len(COMPARED) + 4
    of_teacher = json.loads((kept / "teacher.json").read_text())
    (kept / "teacher.json").write_text(json.dumps(of_teacher | {"teacher": "another"}))
    with pytest.raises(UserError, match="is of another teacher"):
        bench.Bench(there)
    with pytest.raises(UserError, match="results of 2 teachers"):
        table.results(kept)


@pytest.mark.usefixtures("small_bench")
def test_a_cell_that_diverges_is_an_outcome_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make.make

    failure: Exception = RuntimeError("a bug")

    def make_or_diverge(cell: Cell, *others: Any) -> dict[str, Any]:
        if cell.method == "fixed":
            raise failure
        return made(cell, *others)

    monkeypatch.setattr(make, "make", make_or_diverge)
    monkeypatch.setattr(bench, "comparison", lambda rates: [])
    there = places(tmp_path)
    with pytest.raises(RuntimeError, match="a bug"):
        bench.worker(there, 0)
    failure = Diverged("the loss is not finite")
    bench.worker(there, 0)
    kept = json.loads((there.results / f"{Cell('fixed', 1e-3).name}.json").read_text())
    assert kept["failed"] == "the loss is not finite"
    methods = {row["cell"]["method"] for row in table.results(there.results).values() if "cell" in row}
    assert methods == {*COMPARED} - {"fixed"}


def test_a_rate_at_which_runs_fail_is_not_chosen(tmp_path: Path) -> None:
    for rate in RATES:
        scores = {task: {"dev_accuracy": 0.1} for task in ("keyword", "speaker")}
        values = scores if rate == RATES[2] else {"failed": "the loss is not finite"}
        (tmp_path / f"{Cell('fixed', rate).name}.json").write_text(json.dumps(values))
    assert bench.best_rates(tmp_path) == {"fixed": RATES[2]}
