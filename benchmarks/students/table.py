"""The results of the benchmark of hand-made students, and the latency of its models.

    python -m benchmarks.students.table                                # of the results that are kept here
    python -m benchmarks.students.table --results DIRECTORY --latency  # of your own

As Markdown: the grid, what it says of losses, shapes, inputs on the same clips, longer distillation, a tenth of the
texts, three and nine times the steps, and sentences; the best of words on dev beside others. Word errors are on clips
of speakers that nothing was trained on, of sentences phone errors of voices that were; with 95 % bootstrap intervals
over clips. Of several seeds, which are counted, means are given; intervals are of these models for other clips or
speakers, not for other trainings.
Latency is of 10 s, batch 1, from the waveform on, median of passes in turn, of one recogniser of every shape: students
made by hand have one for an input, pruned ones their own. It takes no trained model: of every shape one is made again,
with weights by chance, from what is kept. The real-time factor is that on one thread.
CPU minutes are of distillation and fine-tuning, without the teacher's. What is not there is named.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.recogniser_tables import Results, Row, mean_interval, more_errors, read
from benchmarks.record import RESULTS
from benchmarks.students.bench import TASKS, grid
from benchmarks.students.cells import (
    DISTILLED_LONGER,
    INPUTS,
    LOSSES,
    MADE_BY_HAND,
    SEEDS,
    STUDENTS,
    WHOLE,
    Cell,
    Encoder,
    Input,
    Student,
    Text,
    best,
    encoders,
    first,
)
from benchmarks.students.latency import THREADS, latency_ms, measure
from benchmarks.synergy.bench import Places
from diminuendo.errors import UserError

NAMES: dict[Student, str] = {
    "deep-thin": "deep and thin",
    "shallow-wide": "shallow and wide",
    "pruned": "pruned jointly",
    "whole": "the teacher, whole",
}
HEARD: dict[Input, str] = {
    "waveform": "waveform",
    "fbank": "filter banks",
    "fbank-long": "filter banks, longer learned",
    "fbank-deep": "filter banks, deep front end",
}
LEARNED_LONGER: tuple[Input, ...] = ("fbank-long", "fbank-deep")
TITLES: dict[Text, str] = {
    "words": "Words",
    "tenth": "Words, a tenth of the texts",
    "longer": "Words, three times the steps",
    "longest": "Words, nine times the steps",
    "sentences": "Phones of sentences",
}
HEAD = (
    "student",
    "loss",
    "input",
    "errors, %",
    "more than by regression, points",
    "parameters",
    "M MACs/s",
    *(f"ms, {threads} thread" + "s" * (threads > 1) for threads in THREADS),
    "real-time factor",
    "CPU minutes",
)


def seeds(found: Results, cell: Cell) -> list[str]:
    """The names of what there is of a cell, of any seed."""
    some = (replace(cell, encoder=replace(cell.encoder, seed=seed)).name for seed in range(SEEDS))
    return [name for name in some if name in found.rows]


def both_seeds(found: Results, one: Cell, other: Cell) -> tuple[list[str], list[str]]:
    """The names of two cells, of the seeds of which both are there."""
    pairs = [
        [replace(cell, encoder=replace(cell.encoder, seed=seed)).name for cell in (one, other)] for seed in range(SEEDS)
    ]
    there = [pair for pair in pairs if all(name in found.rows for name in pair)]
    return [a for a, _ in there], [b for _, b in there]


def table(text: Text, found: Results) -> str:
    """Of what is there; nothing if there is nothing."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + " --- |" * len(HEAD)]
    cells = [Cell(encoder, text) for encoder in encoders()]
    rows = [_line(cell, found) for cell in cells if seeds(found, cell)]
    return "\n".join([*lines, *rows]) if rows else ""


def _line(cell: Cell, found: Results) -> str:
    names, encoder = seeds(found, cell), cell.encoder
    rows = [found.rows[name] for name in names]
    distilled = [found.rows[name]["cpu_seconds"] for name in _encoders(names) if name in found.rows]
    spent = sum(row["cpu_seconds"] for row in rows) + sum(distilled)
    plain = replace(cell, encoder=replace(encoder, loss="regression"))
    against = "" if encoder.loss in ("regression", "none") else _points(found, cell, plain)
    times = {count: latency_ms(found, encoder, count) for count in THREADS}
    cells = [
        NAMES[encoder.student],
        "" if encoder == WHOLE else _loss(encoder),
        HEARD[encoder.input],
        errors_of(rows),
        against,
        f"{sum(row['params'] for row in rows) / len(rows):,.0f}",
        f"{sum(row['macs_per_second'] for row in rows) / len(rows) / 1e6:.0f}",
        *("" if time is None else f"{time:.1f}" for time in times.values()),
        "" if times[1] is None else f"{times[1] / 1e4:.4f}",
        f"{spent / len(rows) / 60:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def errors_of(rows: Sequence[Row]) -> str:
    """Of some seeds, in percent, with the interval over clips and where they differ; nothing of none."""
    if not rows:
        return ""
    values = [100 * row["wer"]["wer"] for row in rows]
    spread = f"; {len(rows)} seeds, {min(values):.1f} to {max(values):.1f}" if len(rows) > 1 else ""
    return f"{sum(values) / len(values):.1f} ({mean_interval([row['wer'] for row in rows], 'wer')}{spread})"


def _loss(encoder: Encoder) -> str:
    return encoder.loss + (f", {_as_long(encoder.times)}" if encoder.times > 1 else "")


def _as_long(times: int) -> str:
    return f"{times} times as long distilled"


def _encoders(names: Iterable[str]) -> list[str]:
    """Of recognisers the names of what they began with."""
    return ["encoder_" + name.rpartition("_")[0] for name in names]


def _points(found: Results, cell: Cell, other: Cell) -> str:
    ours, others = both_seeds(found, cell, other)
    if not ours:
        return ""
    return more_errors(found, ours, others)[0] + (f", {len(ours)} seeds" if len(ours) > 1 else "")


def questions() -> list[tuple[str, Cell, Cell]]:
    """What is compared: inputs, also at as much training time and of longer distillation, and shapes."""
    pairs = []
    for student in STUDENTS:
        for loss in LOSSES:
            one, banks = (Cell(Encoder(student, loss, heard)) for heard in INPUTS)
            what = f"{NAMES[student]}, {loss}"
            pairs.append((f"{what}: filter banks than the waveform", banks, one))
            longer, longer_banks = (replace(cell, text="longer") for cell in (one, banks))
            pairs.append((f"{what}: filter banks, longer, than the waveform", longer_banks, one))
            pairs.append((f"{what}: filter banks than the waveform, both longer", longer_banks, longer))
            long_banks, deep_banks = (Cell(Encoder(student, loss, heard), "longer") for heard in LEARNED_LONGER)
            of_waveform = replace(one, text="longest")
            for cell in (long_banks, deep_banks):
                name, longest = HEARD[cell.encoder.input], replace(cell, text="longest")
                pairs.append((f"{what}: {name}, than the waveform, both longer", cell, longer))
                pairs.append((f"{what}: {name}, than filter banks, both longer", cell, longer_banks))
                pairs.append((f"{what}: {name}, longest, than the waveform, longer", longest, longer))
                pairs.append((f"{what}: {name}, than the waveform, both longest", longest, of_waveform))
            pairs.append(
                (f"{what}: {HEARD['fbank-deep']} than {HEARD['fbank-long']}, both longer", deep_banks, long_banks)
            )
            times, far = _as_long(DISTILLED_LONGER), _distilled_longer(longer)
            for cell in (long_banks, deep_banks):
                name, far_banks = HEARD[cell.encoder.input], _distilled_longer(cell)
                pairs.append((f"{what}, {times}: {name}, than the waveform, both longer", far_banks, far))
            for cell in (longer, long_banks, deep_banks):
                name = HEARD[cell.encoder.input]
                pairs.append((f"{what}, {name}, longer: {times} than once", _distilled_longer(cell), cell))
    for heard in INPUTS:
        for loss in LOSSES:
            deep, wide, pruned = (Cell(Encoder(student, loss, heard)) for student in STUDENTS)
            how = f"{loss}, {HEARD[heard]}"
            pairs.append((f"{how}: shallow and wide than deep and thin", wide, deep))
            pairs.append((f"{how}: deep and thin than pruned jointly", deep, pruned))
            pairs.append((f"{how}: shallow and wide than pruned jointly", wide, pruned))
    return pairs


def _distilled_longer(cell: Cell) -> Cell:
    return replace(cell, encoder=replace(cell.encoder, times=DISTILLED_LONGER))


def losses(text: Text) -> list[tuple[str, Cell, Cell]]:
    """Every loss beside plain regression."""
    pairs = []
    for heard in INPUTS:
        for student in STUDENTS:
            plain, *others = (Cell(Encoder(student, loss, heard), text) for loss in LOSSES)
            for one in others:
                title = f"{NAMES[student]}, {HEARD[heard]}: {one.encoder.loss} than regression"
                pairs.append((title, one, plain))
    return pairs


def with_best(found: Results, text: Text) -> list[tuple[str, Cell, Cell]]:
    """What was best on dev with the other students at their best, plain regression into one made by hand, the teacher.

    Of every input, each with the same of the others; best of words, whatever the text.
    """
    if not all(cell.name in found.rows for cell in first()):
        return []
    ranked = best({cell.name: found.rows[cell.name]["dev_wer"] for cell in first()})
    pairs = []
    for heard in HEARD:
        ours = replace(ranked[0], input=heard)
        others = [*ranked[1:], *(Encoder(student, "regression") for student in MADE_BY_HAND)]
        for one in dict.fromkeys([*(replace(other, input=heard) for other in others), WHOLE]):
            pairs.append((f"{title_of(ours)}, than {title_of(one)}", Cell(ours, text), Cell(one, text)))
    return pairs


def title_of(encoder: Encoder) -> str:
    name = NAMES[encoder.student]
    return name if encoder == WHOLE else f"{name}, {encoder.loss}, {HEARD[encoder.input]}"


def compared(found: Results, one: Cell, other: Cell) -> tuple[str, str, str, str]:
    """More errors in points with an interval over clips, that over speakers, relative; less time, where it is known."""
    ours, others = both_seeds(found, one, other)
    times = [latency_ms(found, cell.encoder, 1) for cell in (one, other)]
    saved = f"{1 - times[0] / times[1]:.0%}" if times[0] and times[1] else ""
    return *more_errors(found, ours, others), saved


def counted(title: str, number: int) -> str:
    return title + (f", {number} seeds" if number > 1 else "")


def answers(found: Results, pairs: Sequence[tuple[str, Cell, Cell]]) -> str:
    """Of those of which both are there; nothing if there are none."""
    lines = ["| than | more errors, points | by speakers | relative, % | less time |", "|" + " --- |" * 5]
    for title, one, other in pairs:
        if number := len(both_seeds(found, one, other)[0]):
            lines.append(f"| {counted(title, number)} | {' | '.join(compared(found, one, other))} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def missing(places: Places, found: Results) -> tuple[list[str], bool]:
    """What is not there of the cells that are known, and whether all are."""
    cells, complete = grid(places)
    return [cell.name for cell in cells if cell.name not in found.rows], complete


def asked(found: Results, text: Text) -> list[tuple[str, Cell, Cell]]:
    """All that is compared after one text, the best on dev with others first."""
    return [*with_best(found, text), *(questions() if text == "words" else []), *losses(text)]


def sections(folder: Path) -> Sequence[str]:
    parts = []
    for text, title in TITLES.items():
        found = read(folder, TASKS[text])
        rows = table(text, found)
        parts += [f"**{title}**", rows, answers(found, asked(found, text))] if rows else []
    return [part for part in parts if part]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.students.table", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS / "students", help="default: the results kept here")
    parser.add_argument("--latency", action="store_true", help="measure it first, of untrained models")
    given = parser.parse_args()
    if given.latency:
        try:
            measure(read(given.results), given.results)
        except UserError as error:
            parser.error(str(error))
    print(*sections(given.results), sep="\n\n", end="\n\n")
    names, complete = missing(Places(Path(), Path(), given.results), read(given.results))
    if names:
        print(f"Not there yet ({len(names)}): {', '.join(names)}")
    if not complete:
        print("What follows is chosen by dev, once these are there.")


if __name__ == "__main__":
    main()
