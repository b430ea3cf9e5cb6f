"""The whole story, offline: make a corpus, pretrain an encoder on it, compress it, compare, save, report."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet

from diminuendo.api import compress_config, source_of
from diminuendo.data.manifest import ALL, read_cuts
from diminuendo.data.synthetic import make_corpus
from diminuendo.errors import UserError
from diminuendo.evaluation.probes import (
    Features,
    ProbeResult,
    encoder_features,
    labelled_clips,
    log_mel_features,
    run_probe,
)
from diminuendo.families import family_of
from diminuendo.profiling.count import count_parameters
from diminuendo.profiling.latency import measure_interleaved
from diminuendo.report.page import Table
from diminuendo.report.write import write_report
from diminuendo.students.shape import NAMED
from diminuendo.students.student import make_student
from diminuendo.training.compress import compress
from diminuendo.training.compress_config import CompressConfig
from diminuendo.training.config import LoopConfig
from diminuendo.training.distil import DistilConfig, distil
from diminuendo.training.pretrain import pretrain
from diminuendo.training.pretrain_config import PretrainConfig
from diminuendo.training.run import write_json

log = logging.getLogger(__name__)

ENCODER = "demo-hubert"
KEEP = 0.25


def demo_configs(seed: int) -> tuple[PretrainConfig, CompressConfig]:
    """Chosen so that all of it takes less than ten minutes on two cores."""
    compression = compress_config(
        keep=f"params={KEEP}",
        steps=400,
        seconds_per_batch=20.0,
        max_seconds=4.0,
        learning_rate=1e-3,
        distil_learning_rate=5e-4,
        seed=seed,
    )
    pretraining = PretrainConfig(steps=900, front_end=0.2, seed=seed)
    return pretraining, compression


def demo(
    out: Path,
    data: Path | None = None,
    *,
    probe_data: Path | None = None,
    probe: str = "keyword",
    pretraining: PretrainConfig,
    compression: CompressConfig,
    encoder: str = ENCODER,
    loop: LoopConfig,
) -> dict[str, Any]:
    """Runs the story in `out` (what is there already is kept) and returns its table.

    data: audio to pretrain on and to compress with; without it, a synthetic corpus is made. probe_data: labelled clips
    for the probe (default: `data`). Every part is a run of its own, so a demo that was stopped goes on where it was.
    """
    if out.is_file():
        raise UserError(f"--out {out} is a file; expected a directory")
    if not compression.second_stage_steps:
        raise UserError("--steps: the demo compares models after distillation, which has half as many; give at least 2")
    if data is None:
        log.info("1. a spoken corpus, made by eSpeak NG")
        data = make_corpus(out / "corpus")
    cuts, probe_cuts = read_cuts(data, None), read_cuts(probe_data or data, ALL)
    labelled_clips(probe, probe_cuts, compression.seed)  # what is wrong with them is said now, not after training
    log.info("2. pretraining %s on it", encoder)
    pretrain(encoder, cuts, out / "teacher", pretraining, loop=loop, resume=True)
    teacher = source_of(out / "teacher")
    log.info("3. compressing it to %s", compression.keep)
    small = compress(teacher, cuts, out / "small", compression, loop=loop, resume=True)
    log.info("4. for comparison: a fixed student of equal size, by distillation alone, as many steps")
    thin = make_student(teacher.model, NAMED["thin"], small["params"]["student"], seed=compression.seed)
    distil(thin.model, teacher, cuts, out / "fixed", distil_alone(compression), loop=loop, resume=True)
    log.info("5. what frozen features know: %s accuracy of a linear head", probe)
    table = _compare(out, probe_cuts, probe, compression.seed)
    write_json(out / "table.json", table)
    report = write_report(
        [out / "small", out / "fixed", out / "teacher"],
        out / "report.html",
        tables=[_as_table(table, probe)],
        title="diminuendo: the demo",
    )
    return {"table": table, "report": str(report), "model": str(out / "small")}


def distil_alone(config: CompressConfig) -> DistilConfig:
    """Matched to a compression: as many steps as both its stages, the same batches, the joint stage's learning rate."""
    return DistilConfig(
        steps=config.steps + config.second_stage_steps,
        learning_rate=config.learning_rate,
        seconds_per_batch=config.seconds_per_batch,
        max_seconds=config.max_seconds,
        crop_to_shortest=config.crop_to_shortest,
        accumulate=config.accumulate,
        precision=config.precision,
        seed=config.seed,
    )


def _compare(out: Path, cuts: CutSet, probe: str, seed: int) -> list[dict[str, Any]]:
    """A row for every model, and for features that need none."""
    teacher = source_of(out / "teacher")  # anew: training may have left the other on another device
    torch.manual_seed(seed + 1)
    random_model: Any = family_of(teacher.model).encoder_class
    students = {"compressed (joint)": "small", "fixed student, distilled": "fixed"}
    sources = {
        "teacher": teacher,
        **{name: source_of(out / folder) for name, folder in students.items()},
        "random weights": replace(teacher, model=random_model(teacher.model.config).eval()),
    }
    latencies = measure_interleaved({name: source.model for name, source in sources.items()}, runs=10)
    rows: list[dict[str, Any]] = []
    features: dict[str, Callable[[], Features]] = {
        name: lambda source=source: encoder_features(source.model, source.extractor)  # type: ignore[misc]
        for name, source in sources.items()
    }
    features["log-mel mean and deviation"] = log_mel_features
    for name, make in features.items():
        found: ProbeResult = run_probe(probe, make(), cuts, seed)
        row = {"model": name, "accuracy": found.accuracy, "low": found.low, "high": found.high}
        if name in sources:
            latency = latencies[name]
            row |= {"params": count_parameters(sources[name].model), "latency_ms": latency.p50_ms}
        if name in students:
            row["distance"] = _final_loss(out / students[name] / "log.jsonl")
        rows.append(row)
        log.info("   %-28s %5.1f %%", name, 100 * found.accuracy)
    return rows


def _final_loss(run_log: Path) -> float:
    """The distillation loss over the last tenth of the log of a run: how far from its teacher a student is."""
    losses = [line["loss"] for line in map(json.loads, run_log.read_text().splitlines()) if line["stage"] == "distil"]
    tail = losses[-max(1, len(losses) // 10) :]
    return float(sum(tail) / len(tail))


def _as_table(rows: list[dict[str, Any]], probe: str) -> Table:
    cells = [
        (
            row["model"],
            f"{row['params']:,}" if "params" in row else "",
            (round(100 * row["accuracy"], 1), round(100 * row["low"], 1), round(100 * row["high"], 1)),
            f"{row['distance']:.3f}" if "distance" in row else "",
            f"{row['latency_ms']:.0f}" if "latency_ms" in row else "",
        )
        for row in rows
    ]
    columns = ("features", "parameters", f"{probe} accuracy, %", "distillation loss", "ms for 10 s, 1 thread")
    return Table("What frozen features know", columns, cells)


def table_text(rows: list[dict[str, Any]]) -> str:
    """The table for a terminal."""
    lines = [f"{'':30}{'parameters':>12}{'accuracy':>10}   95 % interval    {'loss':>6}{'ms for 10 s':>13}"]
    for row in rows:
        params = f"{row['params']:,}" if "params" in row else ""
        latency = f"{row['latency_ms']:.0f}" if "latency_ms" in row else ""
        interval = f"{row['low']:.1%} to {row['high']:.1%}"
        distance = f"{row['distance']:.3f}" if "distance" in row else ""
        lines.append(
            f"{row['model']:30}{params:>12}{row['accuracy']:>10.1%}   {interval:16} {distance:>6}{latency:>13}"
        )
    return "\n".join(lines)
