"""The parts of the benchmark in one working directory, and the workers that see to them."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.encoder import make, pretraining
from benchmarks.encoder.cells import COMPARED, RATES, Cell, Method, comparison, tuning
from benchmarks.encoder.corpus import prepare, training_manifest
from benchmarks.encoder.probe import FLOORS, probe, probe_model
from benchmarks.record import record
from benchmarks.workers import Job, quiet_worker, work_off
from diminuendo.api import source_of
from diminuendo.data.manifest import read_cuts
from diminuendo.errors import UserError
from diminuendo.profiling.count import count_macs_per_second, count_parameters
from diminuendo.training.progress import Diverged
from diminuendo.training.removing import Source
from diminuendo.training.run import fingerprint

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


def outcome(bench: Bench, cell: Cell) -> dict[str, Any]:
    """The cell's result, or why there is none: that a rate is too high is an answer; other errors are none."""
    try:
        return {"cell": asdict(cell), **bench.run(cell)}
    except Diverged as error:
        logging.exception("%s failed", cell.name)
        return {"cell": asdict(cell), "failed": str(error)}


def jobs(bench: Bench) -> tuple[dict[str, Job], bool]:
    """What can be made by now, and whether that is all."""
    rates = best_rates(bench.results)
    cells = [*tuning(), *comparison(rates)]
    found: dict[str, Job] = dict(bench.references())
    found |= {cell.name: (lambda cell=cell: outcome(bench, cell)) for cell in cells if bench.ready(cell)}  # type: ignore[misc]
    return found, len(rates) == len(COMPARED) and all(bench.ready(cell) for cell in cells)


def worker(places: Places, number: int) -> None:
    quiet_worker(number)
    bench = Bench(places)
    work_off(lambda: jobs(bench), bench.done, bench.save, bench.work / "locks")
