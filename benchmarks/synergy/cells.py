"""The grid: every cell is a small recogniser, of the same size, from the same encoder, after as many steps."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Mode = Literal["full", "streaming", "sentences"]
Method = Literal["l0", "lowrank", "l0+lowrank", "thin"]

MODES: tuple[Mode, ...] = ("full", "streaming", "sentences")
WORDS: tuple[Mode, ...] = ("full", "streaming")  # connected ones, of speakers that are not in training
METHODS: tuple[Method, ...] = ("l0", "lowrank")

KEEP = 0.25  # of the teacher's parameters, its head included
STEPS = 2400
# Of the joint run: what follows removal, late, as dev has it (docs/LOG.md). Of the run that comes in two: compression,
# and of that what follows removal; the rest is for recognition.
AFTER_REMOVAL = STEPS // 6
AGNOSTIC = 800
AGNOSTIC_AFTER_REMOVAL = AGNOSTIC // 6


@dataclass(frozen=True)
class Cell:
    """One recogniser.

    mode: whether it hears clips of connected words whole, streams them, or hears read sentences whole. method: what is
    removed, or "thin" for a student of fresh weights, which is never `agnostic`. distilled: whether there is a teacher.
    agnostic: whether the encoder is compressed before anyone learns to recognise, and not at the same time; then the
    teacher is the pretrained encoder, else the uncompressed recogniser, or with `by_encoder` the encoder, too: what is
    left then is what the order alone gives. from_teacher: whether it begins with that recogniser's weights and not with
    the pretrained encoder's. fresh: whether with an untrained encoder of that kind, which is never `agnostic`.
    """

    mode: Mode
    method: Method
    distilled: bool = True
    agnostic: bool = False
    by_encoder: bool = False
    from_teacher: bool = False
    fresh: bool = False
    keep: float = KEEP
    seed: int = 0

    @property
    def name(self) -> str:
        parts = [self.mode, self.method, "agnostic" if self.agnostic else "joint"]
        parts += ["distilled" if self.distilled else "alone"] + ["by-encoder"] * self.by_encoder
        parts += ["from-teacher"] * self.from_teacher + ["fresh"] * self.fresh
        parts += [f"{self.keep:g}", f"seed-{self.seed}"]
        return "_".join(parts)

    @property
    def taught(self) -> bool:
        """Whether the uncompressed recogniser teaches it."""
        return self.distilled and not self.agnostic and not self.by_encoder

    @property
    def of_teacher(self) -> bool:
        """Whether with another uncompressed recogniser it would be another."""
        return self.taught or self.from_teacher

    @property
    def run_seed(self) -> int:
        """Of the run. A stage draws from its run's seed plus its number, so neighbours would share theirs."""
        return 10 * (self.seed + 1)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


# Ranks alone cannot free more than 86.7 % of this recogniser: what is no matrix inside a sublayer stays.
LEAST: dict[Method, float] = {"l0": 0.125, "lowrank": 0.15, "l0+lowrank": 0.125, "thin": 0.125}
# Of several sizes.
BY_SIZE = (
    *(Cell("full", method, from_teacher=True) for method in (*METHODS, "l0+lowrank")),
    Cell("full", "thin"),
    Cell("full", "thin", distilled=False),
)


def grid() -> list[Cell]:
    """All cells, the most telling first: what is unfinished already tells something."""
    alone: dict[str, Any] = {"distilled": False}
    kinds: list[dict[str, Any]] = [
        *({"method": method} for method in (*METHODS, "thin")),
        *({"method": method, "from_teacher": True} | taught for taught in ({}, alone) for method in METHODS),
        *({"method": method} | alone for method in (*METHODS, "thin")),
        *({"method": method, "agnostic": True} | taught for taught in ({}, alone) for method in METHODS),
    ]
    first = [Cell(mode, **kind) for kind in kinds for mode in WORDS]
    controls = [Cell(mode, method, fresh=True) for mode in WORDS for method in METHODS]
    controls += [Cell(mode, method, by_encoder=True) for mode in WORDS for method in METHODS]
    both = [
        Cell(mode, "l0+lowrank", distilled, agnostic)
        for mode in WORDS
        for distilled, agnostic in ((True, False), (True, True), (False, False), (False, True))
    ]
    seeds = [
        Cell(mode, method, agnostic=agnostic, seed=seed)
        for seed in (1, 2)
        for mode in WORDS
        for agnostic in (False, True)
        for method in METHODS
    ]
    beside = [
        cell
        for seed in (1, 2)
        for mode in WORDS
        for cell in (
            Cell(mode, "thin", seed=seed),
            *(Cell(mode, method, from_teacher=True, seed=seed) for method in METHODS),
        )
    ]
    sizes = [replace(cell, keep=keep) for cell in BY_SIZE for keep in (0.5, LEAST[cell.method])]
    sentences = [
        Cell("sentences", method, distilled, from_teacher=method != "thin")
        for distilled in (True, False)
        for method in (*METHODS, "thin")
    ]
    both += [cell for cell in BY_SIZE if cell.method == "l0+lowrank"]
    return [*first, *both, *seeds, *sizes, *beside, *controls, *sentences]
