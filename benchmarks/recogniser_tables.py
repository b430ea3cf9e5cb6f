"""What tables of recognisers have in common: results as they are kept, intervals, and latency."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.record import record
from diminuendo.api import source_of
from diminuendo.evaluation.bootstrap import FEWEST, interval, resampled, summed
from diminuendo.profiling.latency import measure_interleaved

LATENCY = "latency.json"
PASSES = 20  # whose median is the latency
Row = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """What is there of a grid: by name the values, what clips say (words, who speaks), and latencies in ms."""

    rows: dict[str, Row]
    words: Float[Tensor, " clips"]
    speakers: list[str]
    latency: dict[str, float]

    def errors(self, name: str, key: str) -> Float[Tensor, " clips"]:
        return torch.tensor(self.rows[name][key]["errors"], dtype=torch.float64)


def read(folder: Path, task: str = "task") -> Results:
    """What a folder has; nothing of one without results. task: the result that says what test clips say."""
    rows = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    rows = {name: row for name, row in rows.items() if "failed" not in row}
    said, latency = rows.get(task, {"words": [], "speakers": []}), rows.get("latency", {"p50_ms": {}})
    rows = {name: row for name, row in rows.items() if "params" in row}
    return Results(rows, torch.tensor(said["words"], dtype=torch.float64), said["speakers"], latency["p50_ms"])


def ratio_interval(sums: Float[Tensor, "groups 2"]) -> str:
    """Of the first column's sum in percent of the second's, over groups drawn again, if there are enough of them."""
    if len(sums) < FEWEST:
        return "no interval"
    above, below = resampled(sums, seed=0).unbind(dim=1)
    low, high = interval(100 * above / below, len(sums))
    return f"{low:+.1f} to {high:+.1f}"


def mean_interval(rows: Sequence[Row], unit: str) -> str:
    """Of several seeds the mean of both ends; nothing where there are too few clips or speakers for one."""
    if any(row[f"{unit}_low"] is None for row in rows):
        return "no interval"
    low, high = (100 * sum(row[f"{unit}_{end}"] for row in rows) / len(rows) for end in ("low", "high"))
    return f"{low:.1f} to {high:.1f}"


def more_errors(found: Results, names: Sequence[str], than: Sequence[str], key: str = "wer") -> tuple[str, str, str]:
    """How many more errors there are: in points with an interval over clips, that over speakers, and relative.

    Of several seeds, of each clip the mean. Nothing where there is nothing to compare with.
    """
    if not than:
        return "", "", ""
    errors, others = (torch.stack([found.errors(name, key) for name in some]).mean(0) for some in (names, than))
    more = errors - others
    sums, ratio = torch.stack([more, found.words], dim=1), torch.stack([more, others], dim=1)
    points = f"{100 * float(more.sum() / found.words.sum()):+.1f} ({ratio_interval(sums)})"
    relative = f"{100 * float(more.sum() / others.sum()):+.1f} ({ratio_interval(ratio)})"
    return points, ratio_interval(summed(sums, found.speakers)), relative


def time_models(found: Results, places: Mapping[str, Path], folder: Path) -> None:
    """Every model that is there in turn, batch 1, 10 s, one thread."""
    torch.set_num_threads(1)
    models = {name: source_of(path).model for name, path in places.items() if path.is_dir()}
    measured = measure_interleaved(models, runs=PASSES)
    record(folder / LATENCY, {"p50_ms": {name: round(value.p50_ms, 2) for name, value in measured.items()}})
