"""The grid: every cell is a recogniser on a small encoder, all of one size for one input, after as many steps."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

Student = Literal["deep-thin", "shallow-wide", "pruned", "whole"]
Loss = Literal["regression", "discriminative", "both", "none"]
Input = Literal["waveform", "fbank", "fbank-long", "fbank-deep"]
Text = Literal["words", "tenth", "longer", "longest", "sentences"]

MADE_BY_HAND: tuple[Student, ...] = ("deep-thin", "shallow-wide")
STUDENTS: tuple[Student, ...] = (*MADE_BY_HAND, "pruned")
LOSSES: tuple[Loss, ...] = ("regression", "discriminative", "both")
INPUTS: tuple[Input, ...] = ("waveform", "fbank")
SEEDS = 3
DISTILLED_LONGER = 4
"""Times the steps of distillation."""

OF_WORDS: tuple[Text, ...] = ("words", "longer", "longest")
"""Whose recognisers of one encoder are of one size; a tenth of the texts may lack characters."""


@dataclass(frozen=True)
class Encoder:
    """What a recogniser begins with.

    student: its shape, found by joint pruning or made by hand; "whole" for the teacher as it is. loss: what it learned
    from the teacher by; "none" for the teacher itself. input: what it hears; "fbank" and "fbank-long" for filter banks
    with a plain front end, which in the second learned from the convolutions for three times the steps;
    "fbank-deep" for the one with a layer more that hears no clip's level, and learned for longer again.
    """

    student: Student
    loss: Loss
    input: Input = "waveform"
    seed: int = 0
    times: int = 1

    @property
    def name(self) -> str:
        times = f"_times-{self.times}" if self.times > 1 else ""
        return f"encoder_{self.student}_{self.loss}_{self.input}{times}_seed-{self.seed}"

    @property
    def run_seed(self) -> int:
        """Of the run. A stage draws from its run's seed plus its number, so neighbours would share theirs."""
        return 10 * (self.seed + 1)


@dataclass(frozen=True)
class Cell:
    """One recogniser: an encoder, and the texts that it learned from: connected words, a tenth of them, sentences.

    "longer" is connected words, for three times the steps; "longest" for nine times.
    """

    encoder: Encoder
    text: Text = "words"

    @property
    def name(self) -> str:
        return f"{self.encoder.name.removeprefix('encoder_')}_{self.text}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


WHOLE = Encoder("whole", "none")


def encoders() -> list[Encoder]:
    """Of one seed all that there can be, whatever the grid has of them."""
    shapes = [Encoder(student, loss, heard) for heard in get_args(Input) for student in STUDENTS for loss in LOSSES]
    return [WHOLE, *shapes, *(replace(encoder, times=DISTILLED_LONGER) for encoder in shapes)]


def first() -> list[Cell]:
    """Of one seed: every student by every loss with either input, and what they are compared with."""
    grid = [
        Cell(Encoder(student, loss, heard))
        for heard in INPUTS
        for loss in ("regression", "both", "discriminative")
        for student in STUDENTS
    ]
    return [*grid, Cell(WHOLE)]


def best_loss(student: Student, dev: Mapping[str, float]) -> Loss:
    """The one with the fewest word errors on dev, in the mean of both inputs."""
    return min(LOSSES, key=lambda loss: sum(dev[Cell(Encoder(student, loss, heard)).name] for heard in INPUTS))


def best(dev: Mapping[str, float]) -> list[Encoder]:
    """Of every student that of its best loss, on the input where it is better; the best of all first."""
    found = [
        min(
            (Encoder(student, best_loss(student, dev), heard) for heard in INPUTS),
            key=lambda encoder: dev[Cell(encoder).name],
        )
        for student in STUDENTS
    ]
    return sorted(found, key=lambda encoder: dev[Cell(encoder).name])


def then(dev: Mapping[str, float]) -> list[Cell]:
    """What follows from the word errors on dev of all of `first`, the most telling first.

    Longer training on filter banks; more seeds of every student by its best loss, of either input; the best student by
    every loss with a tenth of the texts; longer training of it, on either input; of every student the best on
    sentences; more seeds of plain regression into students made by hand; longer training of the teacher and of the
    other students; the same of those on filter banks that learned longer themselves; and these for three times as many
    steps again, which take about as long as those on the waveform; and those on the waveform in as many; longer
    training of the best student made by hand on encoders distilled for longer, of every input; and longer and longest
    training of all on filter banks with the deep front end.
    """
    ranked, more = best(dev), range(1, SEEDS)
    either = [replace(encoder, input=heard) for encoder in ranked for heard in INPUTS]
    tenth = [Cell(replace(ranked[0], loss=loss, seed=seed), "tenth") for seed in range(SEEDS) for loss in LOSSES]
    seeds = [Cell(replace(encoder, seed=seed)) for encoder in either for seed in more]
    sentences = [Cell(encoder, "sentences") for encoder in (*ranked, WHOLE)]
    regression = [Cell(Encoder(student, "regression", seed=seed)) for student in MADE_BY_HAND for seed in more]
    # Filter banks first: their steps take a third of the time.
    longer = [
        Cell(replace(encoder, input=heard, seed=seed), "longer")
        for seed in range(SEEDS)
        for heard in reversed(INPUTS)
        for encoder in ranked
    ]
    trained: tuple[tuple[Input, Text], ...] = (
        ("fbank-long", "longer"),
        ("fbank-long", "longest"),
        ("waveform", "longest"),
    )
    long = [
        Cell(replace(encoder, input=heard, seed=seed), text)
        for heard, text in trained
        for seed in range(SEEDS)
        for encoder in ranked
    ]
    made_by_hand = next(encoder for encoder in ranked if encoder.student in MADE_BY_HAND)
    inputs: tuple[Input, ...] = ("waveform", "fbank-long", "fbank-deep")
    distilled = [
        Cell(replace(made_by_hand, input=heard, seed=seed, times=DISTILLED_LONGER), "longer")
        for seed in range(SEEDS)
        for heard in inputs
    ]
    texts: tuple[Text, ...] = ("longer", "longest")
    deep = [
        Cell(replace(encoder, input="fbank-deep", seed=seed), text)
        for text in texts
        for encoder in dict.fromkeys([made_by_hand, *ranked])
        for seed in range(SEEDS)
    ]
    of_best = [cell for cell in longer if cell.encoder.student == ranked[0].student]
    rest = [*seeds[4:], *regression, Cell(WHOLE, "longer"), *longer, *long, *distilled, *deep]
    soon = longer[: len(ranked)]  # filter banks, one seed
    return list(dict.fromkeys([*soon, *seeds[:4], *tenth, *of_best, *sentences, *rest]))
