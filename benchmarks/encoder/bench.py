"""The parts of the benchmark in one working directory, and the workers that see to them."""

import fcntl
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.encoder import make, pretraining
from benchmarks.encoder.cells import COMPARED, RATES, Cell, Method, comparison, tuning
from benchmarks.encoder.corpus import prepare, training_manifest
from benchmarks.encoder.probe import FLOORS, probe, probe_model
from benchmarks.record import record
from diminuendo.api import source_of
from diminuendo.data.manifest import read_cuts
from diminuendo.errors import UserError
from diminuendo.profiling.count import count_macs_per_second, count_parameters
from diminuendo.training.progress import Diverged
from diminuendo.training.removing import Source
from diminuendo.training.run import fingerprint

WAIT_SECONDS = 10.0
TOLD = (
    "seconds",
    "cpu_seconds",
    "accuracy",
    "shape",
    "full_shape",
    "expected_before_selection",
    "removal_error",
    "skipped",
)


@dataclass(frozen=True)
class Places:
    """Where the benchmark's parts are: recordings, decoded audio and models, the teacher, a JSON for each result."""

    speech: Path
    work: Path
    teacher: Path
    results: Path


class Bench:
    """What is made and probed, of a teacher that is there. UserError if it is not, or results are of another."""

    def __init__(self, places: Places) -> None:
        self.places, self.work, self.results = places, places.work, places.results
        self.audio = prepare(places.speech, places.work)
        self.teacher = source_of(places.teacher)
        self.teacher_checksum = fingerprint(self.teacher.model)
        for path in self.results.glob("*.json"):
            if json.loads(path.read_text()).get("teacher", self.teacher_checksum) != self.teacher_checksum:
                raise UserError(f"{path} is of another teacher than {places.teacher}: remove {self.results}")

    def cuts(self, fraction: float = 1.0) -> Any:
        return read_cuts(training_manifest(self.audio, fraction), None)

    def references(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """What is probed beside the cells."""
        found: dict[str, Callable[[], dict[str, Any]]] = {
            "teacher": lambda: self._pretrained(self.teacher, self.places.teacher),
            "random": lambda: {"seed": make.SEED, **self._probed(make.random_encoder(self.teacher, make.SEED))},
        }
        warmed_up = self.work / "warmed-up"
        if (warmed_up / "result.json").is_file():
            found["warmed-up"] = lambda: self._pretrained(source_of(warmed_up), warmed_up)
        for name, features in FLOORS.items():
            found[name] = lambda features=features: probe(features(), self.audio)  # type: ignore[misc]
        return found

    def _pretrained(self, source: Source, out: Path) -> dict[str, Any]:
        found = self._probed(source, out)
        # A run counts the processor seconds of its first process; the others do the same work.
        return found | {"processes": pretraining.PROCESSES, "cpu_seconds": found["cpu_seconds"] * pretraining.PROCESSES}

    def _probed(self, source: Source, out: Path | None = None) -> dict[str, Any]:
        """What a model costs and knows; with the directory of its run, also how it was made."""
        found: dict[str, Any] = {
            "params": count_parameters(source.model),
            "macs_per_second": count_macs_per_second(source.model),
        }
        if out is not None:
            run, result = (json.loads((out / name).read_text()) for name in ("run.json", "result.json"))
            found |= {key: run[key] for key in ("config", "clips", "clip_seconds")}
            found |= {key: result[key] for key in TOLD if key in result}
            found.setdefault("shape", shape_in(source.model.config))
        return {**found, **probe_model(source, self.audio)}

    def run(self, cell: Cell) -> dict[str, Any]:
        out = self.work / "cells" / cell.name
        learned = learned_shape(self.results, cell) if cell.needs_learned_shape else None
        make.make(cell, self.teacher, self.cuts(cell.audio), out, learned)
        return {"final_loss": final_loss(out / "log.jsonl"), **self._probed(source_of(out), out)}

    def save(self, name: str, values: dict[str, Any]) -> None:
        record(self.results / f"{name}.json", {"teacher": self.teacher_checksum, **values})

    def done(self, name: str) -> bool:
        return (self.results / f"{name}.json").is_file()

    def ready(self, cell: Cell) -> bool:
        """Whether what a cell needs of others is there."""
        return not cell.needs_learned_shape or learned_shape(self.results, cell) is not None


def shape_in(config: Any) -> dict[str, Any]:
    """What was kept of each axis, or of a model without a shape of its own its widths."""
    found: dict[str, Any] = getattr(config, "diminuendo", {}).get("shape", {})
    return found or {key: getattr(config, key) for key in ("hidden_size", "intermediate_size")}


def final_loss(log: Path) -> float:
    """The loss over the last tenth of a run's last stage: for distillation, how far from its teacher a student is.

    A joint stage's is of sampled gates, without what the multipliers add.
    """
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [line.get("distillation", line["loss"]) for line in lines if line["stage"] == lines[-1]["stage"]]
    tail = losses[-max(1, len(losses) // 10) :]
    return float(sum(tail) / len(tail))


def best_rates(results: Path) -> dict[Method, float]:
    """Of the methods whose every rate has been tried, the one with the best mean dev accuracy of both probes."""
    found: dict[Method, float] = {}
    for method in COMPARED:
        scores = {}
        for rate in RATES:
            path = results / f"{Cell(method, rate).name}.json"
            if path.is_file():
                scores[rate] = dev_score(json.loads(path.read_text()))
        if len(scores) == len(RATES):
            found[method] = max(scores, key=lambda rate: scores[rate])
    return found


def learned_shape(results: Path, cell: Cell) -> dict[str, Any] | None:
    """That of the joint run of the cell's fraction and seed, with the chosen rate; None as long as there is none."""
    if (rate := best_rates(results).get("joint")) is None:
        return None
    path = results / f"{Cell('joint', rate, keep=cell.keep, seed=cell.seed).name}.json"
    return dict(json.loads(path.read_text())["shape"]) if path.is_file() else None


def dev_score(values: dict[str, Any]) -> float:
    """By what rates are chosen; the lowest for a run that failed."""
    if "failed" in values:
        return -1.0
    return float(values["keyword"]["dev_accuracy"] + values["speaker"]["dev_accuracy"])


@contextmanager
def claimed(lock: Path) -> Iterator[bool]:
    """Whether this process has the lock file; it is free again when the process ends, however it does."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def outcome(bench: Bench, cell: Cell) -> dict[str, Any]:
    """The cell's result, or why there is none: that a rate is too high is an answer; other errors are none."""
    try:
        return {"cell": asdict(cell), **bench.run(cell)}
    except Diverged as error:
        logging.exception("%s failed", cell.name)
        return {"cell": asdict(cell), "failed": str(error)}


def work_through(bench: Bench) -> None:
    """Does what is to do and what no other worker is doing, until all is done."""
    while True:
        rates = best_rates(bench.results)
        cells = [*tuning(), *comparison(rates)]
        jobs: dict[str, Callable[[], dict[str, Any]]] = dict(bench.references())
        jobs |= {cell.name: (lambda cell=cell: outcome(bench, cell)) for cell in cells if bench.ready(cell)}  # type: ignore[misc]
        open_jobs = [name for name in jobs if not bench.done(name)]
        complete = len(rates) == len(COMPARED) and all(bench.ready(cell) for cell in cells)
        if complete and not open_jobs:
            return
        for name in open_jobs:
            with claimed(bench.work / "locks" / name) as mine:
                if mine and not bench.done(name):
                    started = time.monotonic()
                    bench.save(name, jobs[name]())
                    logging.info("%s: %.1f minutes, %d to do", name, (time.monotonic() - started) / 60, len(open_jobs))
                    break
        else:
            time.sleep(WAIT_SECONDS)


def worker(places: Places, number: int) -> None:
    logging.basicConfig(level=logging.WARNING, format=f"%(asctime)s worker {number}: %(message)s")
    logging.getLogger().setLevel(logging.INFO)
    logging.getLogger("diminuendo").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    work_through(Bench(places))
