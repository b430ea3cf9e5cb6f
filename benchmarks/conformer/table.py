"""The results of the benchmark of halved conformer recognisers, and the latency of its models.

    python -m benchmarks.conformer.table                                     # of the results that are kept here
    python -m benchmarks.conformer.table --results DIRECTORY --latency WORK  # of your own

As Markdown, a table for each recogniser: word errors on clips of speakers that nothing was trained on, with 95 %
bootstrap intervals over clips; how many more errors there are on the same clips than of the untouched teacher, and than
of the whole recogniser that was trained for as many steps more, with intervals over clips and over speakers. Of several
seeds, which are counted, means are given; intervals are of these models for other clips or speakers, not for other
trainings. Latency is of 10 s, batch 1, one thread, median of 20 passes, models in turn. CPU minutes are without those
of the teacher. What the grid has and the results have not is named.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.conformer.bench import TEACHERS, model_of
from benchmarks.conformer.cells import KINDS, SEEDS, SIZE, Cell, Kind, Method, grid
from benchmarks.recogniser_tables import Results, Row, mean_interval, more_errors, read, time_models
from benchmarks.record import RESULTS

TITLES: dict[Kind, str] = {"parakeet": "Parakeet, RNN-T", "wav2vec2-conformer": "Wav2Vec2-Conformer, CTC"}
NAMES: dict[Method, str] = {
    "whole": "the whole recogniser, trained on",
    "l0": "L0",
    "taylor": "Taylor",
    "magnitude": "magnitude",
    "random": "random",
    "layerdrop": "layer dropping",
}
HEAD = (
    "",
    "WER, %",
    "worse than the teacher, points",
    "than the whole one, points",
    "by speakers",
    "relative, %",
    "parameters",
    "kept",
    "M MACs/s",
    "kept",
    "ms for 10 s",
    "less",
    "CPU minutes",
)


def label(cell: Cell) -> str:
    if cell.method == "whole":
        return NAMES["whole"]
    matched = f", {cell.matching} matching" if cell.method == "l0" else ""
    return f"{NAMES[cell.method]}{matched}, half of the {'parameters' if cell.budget == SIZE else 'MACs'}"


def seeds(found: Results, cell: Cell) -> list[str]:
    """The names of what there is of a cell, of any seed."""
    return [name for seed in range(SEEDS) if (name := replace(cell, seed=seed).name) in found.rows]


def table(kind: Kind, found: Results) -> str:
    lines = ["| " + " | ".join(HEAD) + " |", "|" + " --- |" * len(HEAD)]
    teacher = [TEACHERS[kind]] if TEACHERS[kind] in found.rows else []
    whole = seeds(found, Cell(kind, "whole"))
    if teacher:
        lines.append(_line("the teacher", teacher, found, [], whole, teacher))
    for cell in grid():
        if cell.kind == kind and cell.seed == 0 and (names := seeds(found, cell)):
            against = [] if cell.method == "whole" else whole
            lines.append(_line(label(cell), names, found, teacher, against, teacher))
    return "\n".join(lines)


def _line(
    title: str, names: Sequence[str], found: Results, teacher: Sequence[str], whole: Sequence[str], full: Sequence[str]
) -> str:
    """teacher, whole: what it is compared with by words, nothing for none; full: by cost."""
    rows = [found.rows[name] for name in names]

    def mean(value: Callable[[Row], float], of: Sequence[Row] = rows) -> float:
        return sum(map(value, of)) / len(of)

    def kept(key: str) -> str:
        return f"{mean(lambda row: row[key]) / mean(lambda row: row[key], [found.rows[one] for one in full]):.1%}"

    values = [100 * row["wer"]["wer"] for row in rows]
    spread = f"; {len(rows)} seeds, {min(values):.1f} to {max(values):.1f}" if len(rows) > 1 else ""
    spent = [row["cpu_seconds"] for row in rows] if full != names else []
    milliseconds, of_full = _latency(found, names), _latency(found, full)
    cells = [
        title,
        f"{sum(values) / len(values):.1f} ({mean_interval([row['wer'] for row in rows], 'wer')}{spread})",
        *(more_errors(found, names, teacher)[:1]),
        *more_errors(found, names, whole),
        f"{mean(lambda row: row['params']):,.0f}",
        kept("params") if full else "",
        f"{mean(lambda row: row['macs_per_second']) / 1e6:.1f}",
        kept("macs_per_second") if full else "",
        "" if milliseconds is None else f"{milliseconds:.1f}",
        "" if milliseconds is None or of_full is None else f"{1 - milliseconds / of_full:.0%}",
        f"{sum(spent) / len(spent) / 60:.1f}" if spent else "",
    ]
    return "| " + " | ".join(cells) + " |"


def _latency(found: Results, names: Sequence[str]) -> float | None:
    times = [found.latency[name] for name in names if name in found.latency]
    return sum(times) / len(times) if times else None


def missing(found: Results) -> list[str]:
    return [name for name in (*TEACHERS.values(), *(cell.name for cell in grid())) if name not in found.rows]


def measure_latency(found: Results, work: Path, folder: Path) -> None:
    places = {name: work / name if name in TEACHERS.values() else model_of(work, name) for name in found.rows}
    time_models(found, places, folder)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conformer.table", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS / "conformer", help="default: the results kept here")
    parser.add_argument("--latency", type=Path, metavar="WORK", help="measure the models in this folder first")
    given = parser.parse_args()
    if given.latency:
        measure_latency(read(given.results), given.latency, given.results)
    found = read(given.results)
    for kind in KINDS:
        print(f"**{TITLES[kind]}**", table(kind, found), sep="\n\n", end="\n\n")
    if names := missing(found):
        print(f"Not there yet ({len(names)}): {', '.join(names)}")


if __name__ == "__main__":
    main()
