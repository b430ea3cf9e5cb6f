"""The results of the encoder benchmark as a table and a plot, and the latency of its models.

    python -m benchmarks.encoder.table                      # the table, as Markdown
    python -m benchmarks.encoder.table --plot docs/encoder.png
    python -m benchmarks.encoder.table --paired             # what joint has more than the others, on the same clips
    python -m benchmarks.encoder.table --shapes             # what the joint runs have kept, layer by layer
    python -m benchmarks.encoder.table --latency DIRECTORY  # the --work of the benchmark; then the table has it too

Accuracies are of test clips; intervals are 95 % bootstrap intervals over speakers (keywords) or clips (speakers). With
several seeds, the mean and from the lowest to the highest.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.encoder import paired
from benchmarks.encoder.bench import FOLDER
from benchmarks.record import RESULTS, record
from diminuendo.api import source_of
from diminuendo.profiling.latency import measure_interleaved
from diminuendo.report.layer_map import panels

NAMES = {
    "joint": "joint distillation and pruning",
    "fixed": "distillation, fixed thin student",
    "prune-only": "pruning without distillation",
    "one-shot": "one-shot magnitude, then distillation",
    "learned-shape": "the learned shape from the teacher's largest members, distillation",
    "teacher": "teacher",
    "warmed-up": "teacher after its front end's warm-up",
    "random": "random weights",
    "log-mel": "log-mel, mean and deviation",
    "mfcc": "MFCC, mean and deviation",
}
REFERENCES = ("teacher", "warmed-up", "random", "log-mel", "mfcc")
LATENCY = RESULTS / "encoder_latency.json"
Row = dict[str, Any]


def results() -> dict[str, Row]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def groups(found: dict[str, Row]) -> dict[tuple[Any, ...], list[Row]]:
    """Cells that differ in their seed alone; of a method's rates, the one that was chosen on dev."""
    by_settings: dict[tuple[Any, ...], dict[float, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for name, row in found.items():
        if "cell" in row:
            cell = row["cell"]
            key = (cell["method"], cell["keep"], cell["ablation"], cell["audio"], cell["steps"])
            by_settings[key][cell["rate"]].append(row | {"name": name})
    return {key: max(rates.values(), key=_dev_of_seed_0) for key, rates in by_settings.items()}


def _dev_of_seed_0(rows: list[Row]) -> float:
    first = next((row for row in rows if row["cell"]["seed"] == 0), rows[0])
    return float(first["keyword"]["dev_accuracy"] + first["speaker"]["dev_accuracy"])


def _label(key: tuple[Any, ...], steps: int) -> str:
    method, _, ablation, audio, taken = key
    notes = [ablation.replace("-", " ")] if ablation else []
    notes += [f"{audio:.0%} of the audio"] if audio < 1 else []
    notes += [f"{taken:,} steps"] if taken != steps else []
    return ", ".join([NAMES[method], *notes])


def _accuracy(rows: list[Row], task: str) -> str:
    values = [100 * row[task]["accuracy"] for row in rows]
    if len(values) > 1:
        return f"{sum(values) / len(values):.1f} ({min(values):.1f} to {max(values):.1f}, {len(values)} seeds)"
    return f"{values[0]:.1f} ({100 * rows[0][task]['low']:.1f} to {100 * rows[0][task]['high']:.1f})"


def table(found: dict[str, Row], latency: dict[str, float]) -> str:
    """Markdown: references, then the cells by kept fraction."""
    head = ("", "parameters", "keyword, %", "speaker, %", "distillation loss", "ms for 10 s", "CPU hours")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    rows = [(NAMES[name], [found[name] | {"name": name}]) for name in REFERENCES if name in found]
    grouped = groups(found)
    usual = max((key[4] for key in grouped), default=0)
    plain = [key for key in grouped if not key[2] and key[3] == 1 and key[4] == usual]
    ordered = sorted(plain, key=lambda key: (key[1] != 0.25, key[1], list(NAMES).index(key[0])))
    ordered += sorted((key for key in grouped if key not in plain), key=str)
    rows += [(f"{_label(key, usual)}, {key[1]:.1%} kept", grouped[key]) for key in ordered]
    for label, same in rows:
        first = same[0]
        hours = [row["cpu_seconds"] / 3600 for row in same if "cpu_seconds" in row]
        times = [latency[row["name"]] for row in same if row["name"] in latency]
        # Without distillation it is another loss.
        losses = [row["final_loss"] for row in same if "cell" in row and row["cell"]["method"] != "prune-only"]
        cells = (
            label,
            f"{first['params']:,}" if "params" in first else "",
            _accuracy(same, "keyword"),
            _accuracy(same, "speaker"),
            f"{sum(losses) / len(losses):.3f}" if losses else "",
            f"{sum(times) / len(times):.0f}" if times else "",
            f"{sum(hours) / len(hours):.2f}" if hours else "",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(found: dict[str, Row], latency: dict[str, float], path: Path) -> None:
    """Accuracy against kept parameters and against latency, with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), sharey="row")
    plain = {key: rows for key, rows in groups(found).items() if not key[2] and key[3] == 1}
    usual = max(key[4] for key in plain)
    for row_axes, task in zip(axes, ("keyword", "speaker"), strict=True):
        for method in ("joint", "fixed", "one-shot", "prune-only"):
            same = [rows for key, rows in sorted(plain.items(), key=str) if key[0] == method and key[4] == usual]
            same.sort(key=lambda rows: rows[0]["params"])
            for axis, kind in zip(row_axes, ("params", "latency"), strict=True):
                _line(axis, same, task, kind, found["teacher"], latency, NAMES[method])
        for axis in row_axes:
            for name, style in (("teacher", "-"), ("log-mel", ":"), ("mfcc", "--")):
                axis.axhline(
                    100 * found[name][task]["accuracy"], color="grey", linestyle=style, linewidth=1, label=name
                )
            axis.grid(alpha=0.3)
        row_axes[0].set_ylabel(f"{task} accuracy, %")
    axes[1][0].set_xlabel("kept parameters, % of the teacher's")
    axes[1][1].set_xlabel("milliseconds for 10 s of audio, 1 thread")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def _line(
    axis: Any, same: list[list[Row]], task: str, kind: str, teacher: Row, latency: dict[str, float], label: str
) -> None:
    points = []
    for rows in same:
        names = [row["name"] for row in rows]
        if kind == "latency" and not all(name in latency for name in names):
            continue
        x = (
            100 * rows[0]["params"] / teacher["params"]
            if kind == "params"
            else sum(latency[name] for name in names) / len(names)
        )
        mean, low, high = (sum(row[task][part] for row in rows) / len(rows) for part in ("accuracy", "low", "high"))
        points.append((x, 100 * mean, 100 * (mean - low), 100 * (high - mean)))
    if points:
        x_values, means, below, above = zip(*points, strict=True)
        axis.errorbar(x_values, means, yerr=(below, above), marker="o", capsize=3, label=label)


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


def measure_latency(work: Path) -> None:
    """Every model that is there, in turn, batch 1, 10 s, one thread."""
    torch.set_num_threads(1)
    folders = {name: work / "cells" / name for name in results() if (work / "cells" / name).is_dir()}
    folders |= {name: work / name for name in ("teacher", "warmed-up")}
    models = {name: source_of(folder).model for name, folder in folders.items()}
    found = measure_interleaved(models, runs=20)
    record(LATENCY.stem, {"p50_ms": {name: round(value.p50_ms, 2) for name, value in found.items()}})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoder.table", description=__doc__.splitlines()[0])
    parser.add_argument("--latency", type=Path, metavar="DIRECTORY", help="measure the models of this --work first")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    parser.add_argument("--paired", action="store_true", help="print what joint has more than the others instead")
    parser.add_argument("--shapes", action="store_true", help="print the learned shapes instead")
    given = parser.parse_args()
    if given.latency:
        measure_latency(given.latency)
    latency = json.loads(LATENCY.read_text())["p50_ms"] if LATENCY.is_file() else {}
    found = results()
    if given.paired:
        print(paired.table(groups(found), NAMES))
    else:
        print(shapes(found) if given.shapes else table(found, latency))
    if given.plot:
        plot(found, latency, given.plot)


if __name__ == "__main__":
    main()
