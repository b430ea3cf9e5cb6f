"""The results of the grid of small recognisers: tables, a plot, and the latency of its models.

    python -m benchmarks.synergy.table                                    # of the results that are kept here
    python -m benchmarks.synergy.table --results DIRECTORY --latency WORK --plot FILE     # of your own

As Markdown, for recognisers of whole clips and for streaming ones: word errors on clips of speakers that nothing was
trained on, with 95 % bootstrap intervals over clips and over speakers; then how many more errors one has than another
on the same clips. Intervals are of these models for other clips or speakers, not for other trainings; of several seeds,
which are counted, means are given. CPU minutes are without those of the teacher and of pretraining. Where recognition
follows compression, what is distilled are the pretrained encoder's states, which knows no text; else the teacher's.
What the grid has and the results have not is named.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.recogniser_tables import Results, Row, mean_interval, ratio_interval, read, time_models
from benchmarks.record import RESULTS
from benchmarks.synergy.bench import TASKS
from benchmarks.synergy.cells import BY_SIZE, LEAST, METHODS, MODES, Cell, Method, Mode, grid
from diminuendo.evaluation.bootstrap import summed

HEADLINE: dict[Mode, str] = {"full": "wer", "streaming": "wer_1040_ms", "sentences": "wer"}
TITLES: dict[Mode, str] = {
    "full": "Connected words, whole clips",
    "streaming": "Connected words, streaming, 1,040 ms of lookahead",
    "sentences": "Phones of read sentences, of voices that are in training",
}
NAMES: dict[Method, str] = {
    "l0": "L0",
    "lowrank": "low rank",
    "l0+lowrank": "L0 and low rank",
    "thin": "thin student",
}


def label(cell: Cell) -> str:
    if cell.method == "thin":
        return "thin student, distilled" if cell.distilled else "thin student, trained directly"
    how = ", then recognition" if cell.agnostic else " and recognition together"
    taught = ", distillation" + (" from the encoder" if cell.by_encoder else "") if cell.distilled else ""
    start = ", from the teacher's weights" if cell.from_teacher else ", from fresh weights" if cell.fresh else ""
    return f"{NAMES[cell.method]}{taught}{how}{start}"


def seeds(found: Results, cell: Cell) -> list[str]:
    """The names of what there is of a cell, of any seed."""
    return [name for seed in range(3) if (name := replace(cell, seed=seed).name) in found.rows]


def cells_of(mode: Mode, found: Results) -> list[Cell]:
    """Of seed 0, in the order of the grid, by kept size."""
    there = [cell for cell in grid() if cell.mode == mode and not cell.seed and seeds(found, cell)]
    return sorted(there, key=lambda cell: cell.keep != 0.25)


def table(mode: Mode, found: Results) -> str:
    key, teacher = HEADLINE[mode], f"teacher-{mode}"
    others = (
        [name for name in found.rows[teacher] if name.startswith("wer_") and name != key]
        if teacher in found.rows
        else []
    )
    head = [
        "",
        "WER, %",
        "by speakers",
        *(f"at {name[4:-3]} ms" for name in others),
        "better than distillation alone by",
    ]
    head += ["parameters", "kept", "M MACs/s", "ms for 10 s", "real-time factor", "CPU minutes"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    if teacher in found.rows:
        lines.append(_line("the teacher, whole", [teacher], found, key, others, None, None))
    for cell in cells_of(mode, found):
        alone = seeds(found, Cell(cell.mode, "thin", keep=cell.keep))
        line = _line(label(cell), seeds(found, cell), found, key, others, alone, teacher)
        lines.append(line)
    return "\n".join(lines)


def _line(
    title: str,
    names: Sequence[str],
    found: Results,
    key: str,
    others: Sequence[str],
    alone: Sequence[str] | None,
    teacher: str | None,
) -> str:
    rows = [found.rows[name] for name in names]

    def mean(value: Callable[[Row], float]) -> float:
        return sum(map(value, rows)) / len(rows)

    wer = mean(lambda row: row[key]["wer"])
    spread = ""
    if len(rows) > 1:
        values = [100 * row[key]["wer"] for row in rows]
        spread = f"; {len(rows)} seeds, {min(values):.1f} to {max(values):.1f}"
    by_clip, by_speaker = (mean_interval([row[key] for row in rows], unit) for unit in ("wer", "speaker"))
    better = ""
    if alone:
        reference = sum(found.rows[name][key]["wer"] for name in alone) / len(alone)
        better = f"{100 * (1 - wer / reference):+.1f} %"
    whole = found.rows[teacher]["params"] if teacher else rows[0]["params"]
    times = [found.latency[name] for name in names if name in found.latency]
    milliseconds = sum(times) / len(times) if times else None
    cells = [
        title,
        f"{100 * wer:.1f} ({by_clip}{spread})",
        by_speaker,
        *(f"{100 * mean(lambda row, name=name: row[name]['wer']):.1f}" for name in others),  # type: ignore[misc]
        better,
        f"{mean(lambda row: row['params']):,.0f}",
        f"{mean(lambda row: row['params']) / whole:.1%}",
        f"{mean(lambda row: row['macs_per_second']) / 1e6:.0f}",
        "" if milliseconds is None else f"{milliseconds:.1f}",
        "" if milliseconds is None else f"{milliseconds / 1e4:.4f}",
        f"{mean(lambda row: row['cpu_seconds']) / 60:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def questions(mode: Mode) -> list[tuple[str, Cell, Cell]]:
    """What is compared with what on the same clips."""
    found = []
    methods: tuple[Method, ...] = (*METHODS, "l0+lowrank")
    for method in methods:
        joint, name = Cell(mode, method), NAMES[method]
        thin, late = replace(joint, method="thin"), replace(joint, from_teacher=True)
        found += [
            (f"{name}: together without distillation", joint, replace(joint, distilled=False)),
            (f"{name}: together, from fresh weights", joint, replace(joint, fresh=True)),
            (f"{name}: compressed, then recognition", joint, replace(joint, agnostic=True)),
            (f"{name}: together, taught by the encoder", joint, replace(joint, by_encoder=True)),
            (f"{name}: the same without distillation", joint, replace(joint, agnostic=True, distilled=False)),
            (f"{name}: distillation alone, into a thin student", joint, thin),
            (f"{name}: the thin student trained directly", joint, replace(thin, distilled=False)),
            (f"{name}: the same from the teacher's weights", joint, late),
            (f"{name}, from the teacher's weights: distillation alone, into a thin student", late, thin),
            (f"{name}, from the teacher's weights: without distillation", late, replace(late, distilled=False)),
        ]
    return found


def paired(mode: Mode, found: Results) -> str:
    """How many more errors each other way has than all in one run, in points of WER."""
    key = HEADLINE[mode]
    lines = ["| than together with distillation | more errors, points | by speakers |", "| --- | --- | --- |"]
    for title, one, other in questions(mode):
        both = [(replace(one, seed=seed).name, replace(other, seed=seed).name) for seed in range(3)]
        both = [pair for pair in both if all(name in found.rows for name in pair)]
        if both:
            more = sum(found.errors(b, key) - found.errors(a, key) for a, b in both) / len(both)
            sums = torch.stack([torch.as_tensor(more), found.words], dim=1)
            mean = 100 * float(sums[:, 0].sum() / sums[:, 1].sum())
            intervals = [ratio_interval(sums), ratio_interval(summed(sums, found.speakers))]
            noted = f", {len(both)} seeds" if len(both) > 1 else ""
            lines.append(f"| {title}{noted} | {mean:+.1f} ({intervals[0]}) | {intervals[1]} |")
    return "\n".join(lines)


def missing(found: Results) -> list[str]:
    wanted = [f"teacher-{mode}" for mode in MODES] + [cell.name for cell in grid()]
    return [name for name in wanted if name not in found.rows]


def measure_latency(found: Results, work: Path, folder: Path) -> None:
    places = {name: work / (name if name.startswith("teacher") else f"cells/{name}/model") for name in found.rows}
    time_models(found, places, folder)


def plot(found: Results, path: Path) -> None:
    """Word errors against kept size, of each method that has several sizes, with intervals over clips."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 5.5), layout="constrained")
    for number, one in enumerate(BY_SIZE):
        points = []
        for keep in (LEAST[one.method], 0.25, 0.5):
            for name in seeds(found, replace(one, keep=keep))[:1]:
                wer = found.rows[name]["wer"]
                points.append(
                    (100 * keep * (1 + 0.03 * (number - 2)), *(100 * wer[k] for k in ("wer", "wer_low", "wer_high")))
                )
        if points:
            x, y, low, high = zip(*points, strict=True)
            around = ([a - b for a, b in zip(y, low, strict=True)], [b - a for a, b in zip(y, high, strict=True)])
            axis.errorbar(x, y, yerr=around, marker="o", capsize=3, label=label(one))
    if "teacher-full" in found.rows:
        axis.axhline(100 * found.rows["teacher-full"]["wer"]["wer"], color="grey", lw=1, label="the teacher, whole")
    axis.set(xscale="log", xlabel="kept parameters, %", ylabel="word error rate, unseen speakers, %")
    axis.set_xticks([12.5, 15, 25, 50], minor=False)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.synergy.table", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS / "synergy", help="default: the results kept here")
    parser.add_argument("--latency", type=Path, metavar="WORK", help="measure the models in this folder first")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    given = parser.parse_args()
    if given.latency:
        measure_latency(read(given.results), given.latency, given.results)
    for mode in MODES:
        found = read(given.results, TASKS[mode])
        print(f"**{TITLES[mode]}**", table(mode, found), paired(mode, found), sep="\n\n", end="\n\n")
    if names := missing(found):
        print(f"Not there yet ({len(names)}): {', '.join(names)}")
    if given.plot:
        plot(read(given.results), given.plot)


if __name__ == "__main__":
    main()
