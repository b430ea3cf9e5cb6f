"""The results of the encoder benchmark: tables, a plot, and the latency of its models.

    python -m benchmarks.encoder.table                                 # of the results that are kept here
    python -m benchmarks.encoder.table --results DIRECTORY --teacher DIRECTORY --latency --plot FILE   # of your own

As Markdown: every model ("rate": the learning rate that was best on dev, of those in cells.py; "expected": the fraction
that the gates left when selection came); how much more one method has than another on the same clips; what joint runs
have kept, layer by layer. Accuracies are of test clips, with 95 % bootstrap intervals over speakers (keywords) or clips
(speakers); of several seeds, the means, and the lowest and the highest accuracy.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.encoder import paired
from benchmarks.encoder.bench import dev_score
from benchmarks.encoder.cells import COMPARED, STEPS
from benchmarks.encoder.make import in_shape
from benchmarks.record import RESULTS, record
from diminuendo.api import source_of
from diminuendo.errors import UserError
from diminuendo.profiling.latency import measure_interleaved
from diminuendo.report.layer_map import panels

NAMES = {
    "joint": "joint distillation and pruning",
    "fixed": "distillation, fixed thin student",
    "prune-only": "pruning without distillation",
    "one-shot": "one-shot magnitude, then distillation",
    "learned-shape": "the learned shape, from the teacher's largest members",
    "learned-shape-fresh": "the learned shape, from the teacher's convolutions",
    "teacher": "teacher",
    "warmed-up": "teacher after its front end's warm-up",
    "random": "random weights",
    "log-mel": "log-mel, mean and deviation",
    "mfcc": "MFCC, mean and deviation",
}
REFERENCES = ("teacher", "warmed-up", "random", "log-mel", "mfcc")
LATENCY = "latency.json"
TEACHER = RESULTS / "encoder" / "teacher"
PLAIN = ("", 1.0, STEPS)  # ablation, audio and steps of what is not one of these studies
Row = dict[str, Any]


def results(folder: Path) -> dict[str, Row]:
    """Of each model and floor, by name; of runs that failed, none.

    Raises UserError if they are of several teachers.
    """
    paths = [path for path in sorted(folder.glob("*.json")) if path.name != LATENCY]
    found = {path.stem: json.loads(path.read_text()) for path in paths}
    if len(teachers := {row.get("teacher") for row in found.values()}) > 1:
        raise UserError(f"{folder} has results of {len(teachers)} teachers: keep those of one")
    return {name: row for name, row in found.items() if "failed" not in row}


def groups(found: dict[str, Row]) -> dict[tuple[Any, ...], list[Row]]:
    """Cells that differ in their seed alone; of a method's rates, the one that was chosen on dev."""
    by_settings: dict[tuple[Any, ...], dict[float, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for name, row in found.items():
        if "cell" in row:
            cell = row["cell"]
            key = (cell["method"], cell["keep"], cell["ablation"], cell["audio"], cell["steps"])
            by_settings[key][cell["rate"]].append(row | {"name": name})
    return {key: max(rates.values(), key=_score) for key, rates in by_settings.items()}


def _score(rows: list[Row]) -> tuple[float, int]:
    """As rates are chosen: by seed 0; of equal ones, that which has more seeds."""
    first = next((row for row in rows if row["cell"]["seed"] == 0), rows[0])
    return dev_score(first), len(rows)


def label(key: tuple[Any, ...]) -> str:
    method, keep, ablation, audio, taken = key
    if keep == 1:
        return "nothing removed, trained on by its own loss"
    notes = [ablation.replace("-", " ")] if ablation else []
    notes += [f"{audio:.0%} of the audio"] if audio < 1 else []
    notes += [f"{taken:,} steps"] if taken != STEPS else []
    return ", ".join([NAMES[method], *notes])


def _accuracy(rows: list[Row], task: str) -> str:
    mean, low, high = (100 * sum(row[task][part] for row in rows) / len(rows) for part in ("accuracy", "low", "high"))
    values = [100 * row[task]["accuracy"] for row in rows]
    seeds = f"; {len(rows)} seeds, {min(values):.1f} to {max(values):.1f}" if len(rows) > 1 else ""
    return f"{mean:.1f} ({low:.1f} to {high:.1f}{seeds})"


def _closeness(row: Row) -> float | None:
    """The final distillation loss, where it is one of the model that was kept."""
    if "cell" not in row or row["cell"]["method"] == "prune-only" or row["cell"]["ablation"] == "without-stage-2":
        return None
    return float(row["final_loss"])


def table(found: dict[str, Row], latency: dict[str, float]) -> str:
    """Markdown: references, then the cells by kept fraction."""
    head = (
        *("", "rate", "parameters", "M MACs/s", "keyword, %", "speaker, %", "speakers never heard, %"),
        *("distillation loss", "expected", "ms for 10 s", "CPU hours"),
    )
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    rows = [(NAMES[name], [found[name] | {"name": name}]) for name in REFERENCES if name in found]
    grouped = groups(found)
    plain = [key for key in grouped if key[2:] == PLAIN]
    ordered = sorted(plain, key=lambda key: (key[1] != 0.25, key[1], list(NAMES).index(key[0])))
    ordered += sorted((key for key in grouped if key not in plain), key=str)
    rows += [(f"{label(key)}, {key[1]:.1%} kept", grouped[key]) for key in ordered]
    for title, same in rows:
        first = same[0]
        hours = [row["cpu_seconds"] / 3600 for row in same if "cpu_seconds" in row]
        times = [latency[row["name"]] for row in same if row["name"] in latency]
        unheard = [row["never_heard"] for row in same if "never_heard" in row]
        expected = [row["expected_before_selection"] for row in same if "expected_before_selection" in row]
        losses = [loss for loss in map(_closeness, same) if loss is not None]
        cells = (
            title,
            f"{first['cell']['rate']:g}" if "cell" in first else "",
            f"{first['params']:,}" if "params" in first else "",
            f"{first['macs_per_second'] / 1e6:.0f}" if "macs_per_second" in first else "",
            _accuracy(same, "keyword"),
            _accuracy(same, "speaker"),
            f"{100 * sum(unheard) / len(unheard):.1f}" if unheard else "",
            f"{sum(losses) / len(losses):.3f}" if losses else "",
            f"{sum(expected) / len(expected):.3f}" if expected else "",
            f"{sum(times) / len(times):.0f}" if times else "",
            f"{sum(hours) / len(hours):.2f}" if hours else "",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(found: dict[str, Row], latency: dict[str, float], path: Path) -> None:
    """Accuracy against kept parameters and against latency, with intervals; floors where they are near the models."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), sharex="col", sharey="row", layout="constrained")
    plain = [rows for key, rows in groups(found).items() if key[2:] == PLAIN and key[1] < 1]
    places = {
        "kept parameters, %": lambda row: 100 * row["cell"]["keep"],
        "milliseconds for 10 s of audio, 1 thread": lambda row: latency.get(row["name"]),
    }
    for row_axes, task in zip(axes, ("keyword", "speaker"), strict=True):
        for axis, (title, place) in zip(row_axes, places.items(), strict=True):
            for number, method in enumerate(COMPARED):
                points = _points([rows for rows in plain if rows[0]["cell"]["method"] == method], task, place)
                # Side by side where sizes are equal, so that intervals do not cover each other.
                _line(axis, points, 1 + 0.04 * (number - 1.5) if axis is row_axes[0] else 1.0, NAMES[method])
            low, high = axis.get_ylim()
            for name, style in (("teacher", "-"), ("log-mel", ":"), ("mfcc", "--")):
                axis.axhline(100 * found[name][task]["accuracy"], color="grey", ls=style, lw=1, label=NAMES[name])
            axis.set_ylim(low, high)
            axis.grid(alpha=0.3)
            axis.set_xlabel(title if task == "speaker" else "")
        row_axes[0].set_xscale("log")
        row_axes[0].set_xticks(sorted({100 * rows[0]["cell"]["keep"] for rows in plain}), minor=False)
        row_axes[0].xaxis.set_major_formatter("{x:g}")
        row_axes[0].xaxis.set_minor_formatter("")
        row_axes[0].set_ylabel(f"{task} accuracy, %")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=120)


def _points(same: list[list[Row]], task: str, place: Callable[[Row], float | None]) -> list[tuple[float, ...]]:
    """Place, accuracy, and how far its interval goes below and above, in %, from left to right: of seeds the means."""
    points = []
    for rows in same:
        places = [x for row in rows if (x := place(row)) is not None]
        mean, low, high = (
            100 * sum(row[task][part] for row in rows) / len(rows) for part in ("accuracy", "low", "high")
        )
        if len(places) == len(rows):
            points.append((sum(places) / len(rows), mean, mean - low, high - mean))
    return sorted(points)


def _line(axis: Any, points: list[tuple[float, ...]], shift: float, label: str) -> None:
    if points:
        x, means, below, above = zip(*points, strict=True)
        axis.errorbar([shift * value for value in x], means, yerr=(below, above), marker="o", capsize=3, label=label)


def shapes(found: dict[str, Row]) -> str:
    """Markdown: a row for each model of the joint method, chosen rates alone, each part's members by layer."""
    rows = [row for key, same in groups(found).items() if key[0] == "joint" for row in same]
    lines: list[str] = []
    for row in sorted(rows, key=lambda row: str(row["name"])):
        parts = panels(row["shape"], row["full_shape"])
        if not lines:
            head = ["", *(part.title for part in parts)]
            lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
        lines.append("| " + " | ".join([row["name"], *("; ".join(r.text for r in part.rows) for part in parts)]) + " |")
    return "\n".join(lines)


def measure_latency(found: dict[str, Row], teacher: Path, results: Path) -> None:
    """A model of every shape in turn, batch 1, 10 s, one thread; what its weights are makes no difference."""
    torch.set_num_threads(1)
    whole = source_of(teacher).model
    models = {name: in_shape(whole, row["shape"]) for name, row in found.items() if "shape" in row}
    measured = measure_interleaved(models, runs=20)
    record(results / LATENCY, {"p50_ms": {name: round(value.p50_ms, 2) for name, value in measured.items()}})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoder.table", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS / "encoder", help="default: the results kept here")
    parser.add_argument("--teacher", type=Path, default=TEACHER, help="for --latency; default: the one kept here")
    parser.add_argument("--latency", action="store_true", help="measure models of the results' shapes first")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    given = parser.parse_args()
    folder, found = given.results, results(given.results)
    if given.latency:
        measure_latency(found, given.teacher, folder)
    latency = json.loads((folder / LATENCY).read_text())["p50_ms"] if (folder / LATENCY).is_file() else {}
    grouped = groups(found)
    print(table(found, latency), paired.table(grouped, label), shapes(found), sep="\n\n")
    if given.plot:
        plot(found, latency, given.plot)


if __name__ == "__main__":
    main()
