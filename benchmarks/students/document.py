"""The tables of students in docs/results.md, written anew from the results that are kept.

    python -m benchmarks.students.document [FILE]

A table of FILE is known by its first line. Of the comparisons that benchmarks.students.table has these are left: of
several seeds, with the teacher, and of sentences, which have one seed; none twice, nor the other way round.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.recogniser_tables import Results, read
from benchmarks.record import RESULTS
from benchmarks.students.bench import TASKS
from benchmarks.students.cells import (
    INPUTS,
    LOSSES,
    MADE_BY_HAND,
    OF_WORDS,
    SEEDS,
    STUDENTS,
    WHOLE,
    Cell,
    Encoder,
    Text,
    best,
    first,
)
from benchmarks.students.latency import THREADS, latency_ms
from benchmarks.students.table import HEARD, NAMES, asked, both_seeds, compared, counted, errors_of, seeds, title_of
from diminuendo.errors import UserError

LOSS_HEAD = "| word errors, %, seed 0 | regression | discriminative | both | ms |"
BEST_HEAD = (
    "| best loss of each on dev | parameters | M MACs/s | ms, 1 / 2 threads "
    "| word errors, %, 1,600 steps | 4,800 steps | 14,400 steps | phones of sentences wrong, % |"
)
PAIRS_HEAD = (
    '| on the same clips ("longer": 4,800 steps; "longest": 14,400) | more errors, points (over clips; over speakers) '
    "| relative, % | less time |"
)
TENTH_HEAD = (
    "| a tenth of the texts, three seeds | word errors, % "
    "| more than by regression, points (over clips; over speakers) |"
)
BEST_TEXTS: tuple[Text, ...] = ("words", "longer", "longest", "sentences")

Line = Sequence[str]


def by_loss(folder: Path) -> Iterator[Line]:
    found = read(folder)
    for heard in INPUTS:
        for student in STUDENTS:
            encoders = [Encoder(student, loss, heard) for loss in LOSSES]
            errors = [f"{100 * found.rows[Cell(encoder).name]['wer']['wer']:.1f}" for encoder in encoders]
            of_one_shape = encoders[:1] if student in MADE_BY_HAND else encoders
            times = [_ms(found, encoder, 1, [0]) for encoder in of_one_shape]
            yield f"{NAMES[student]}, {HEARD[heard]}", *errors, ", ".join(times)


def by_best(folder: Path) -> Iterator[Line]:
    found = read(folder)
    ranked = best({cell.name: found.rows[cell.name]["dev_wer"] for cell in first()})
    for one in (WHOLE, *(replace(encoder, input=heard) for encoder in ranked for heard in HEARD)):
        rows = {text: [found.rows[name] for name in seeds(found, Cell(one, text))] for text in BEST_TEXTS}
        # Of one seed all recognisers of words are of one size.
        sizes = {row["cell"]["encoder"]["seed"]: row for text in OF_WORDS for row in rows[text]}.values()
        if sizes:
            yield (
                title_of(one),
                f"{sum(row['params'] for row in sizes) / len(sizes):,.0f}",
                f"{sum(row['macs_per_second'] for row in sizes) / len(sizes) / 1e6:.0f}",
                " / ".join(_ms(found, one, threads) for threads in THREADS),
                *(errors_of(rows[text]) for text in BEST_TEXTS),
            )


def pairs(folder: Path) -> Iterator[Line]:
    known = set()
    for text in BEST_TEXTS:
        found = read(folder, TASKS[text])
        for title, one, other in asked(found, text):
            number = len(both_seeds(found, one, other)[0])
            of_few = number < 2 and text != "sentences" and WHOLE not in (one.encoder, other.encoder)
            if not number or of_few or {one, other} in known:
                continue
            known.add(frozenset((one, other)))
            points, by_speakers, *rest = compared(found, one, other)
            prefix = "" if text == "words" else f"{text}: "
            yield prefix + counted(title, number), _over_both(points, by_speakers), *rest


def of_tenth(folder: Path) -> Iterator[Line]:
    found = read(folder)
    for heard in INPUTS:
        for student in STUDENTS:
            for loss in LOSSES:
                one = Encoder(student, loss, heard)
                if names := seeds(found, Cell(one, "tenth")):
                    plain = Cell(replace(one, loss="regression"), "tenth")
                    points, by_speakers, *_ = compared(found, Cell(one, "tenth"), plain)
                    more = "" if loss == "regression" else _over_both(points, by_speakers)
                    yield title_of(one), errors_of([found.rows[name] for name in names]), more


def _ms(found: Results, encoder: Encoder, threads: int, seeds: Iterable[int] = range(SEEDS)) -> str:
    time = latency_ms(found, encoder, threads, seeds)
    return "" if time is None else f"{time:.1f}"


def _over_both(points: str, by_speakers: str) -> str:
    return f"{points.removesuffix(')')}; {by_speakers})"


TABLES: Mapping[str, Callable[[Path], Iterator[Line]]] = {
    LOSS_HEAD: by_loss,
    BEST_HEAD: by_best,
    PAIRS_HEAD: pairs,
    TENTH_HEAD: of_tenth,
}


def tables(folder: Path) -> dict[str, list[Line]]:
    """The lines of every table, by its first line."""
    return {head: list(made(folder)) for head, made in TABLES.items()}


def rewritten(text: str, anew: Mapping[str, Iterable[Line]]) -> str:
    """The text with its tables `anew`. UserError if one of them is not there, or twice."""
    lines = text.splitlines()
    for head, made in anew.items():
        if lines.count(head) != 1:
            raise UserError(f"expected one table that begins with {head!r}; found {lines.count(head)}")
        start = end = lines.index(head) + 2
        while end < len(lines) and lines[end].startswith("|"):
            end += 1
        lines[start:end] = ["| " + " | ".join(line) + " |" for line in made]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.students.document", description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=Path("docs/results.md"), help="default: docs/results.md")
    given = parser.parse_args()
    try:
        text = rewritten(given.file.read_text(), tables(RESULTS / "students"))
    except (OSError, UserError) as error:
        parser.error(f"{given.file}: {error}")
    beside = given.file.with_suffix(".tmp")
    beside.write_text(text)
    beside.rename(given.file)


if __name__ == "__main__":
    main()
