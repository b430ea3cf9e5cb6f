"""The grid: every cell is a recogniser of half the cost, or a whole one, from the same teacher, after as many steps."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from diminuendo.distillation.layer_match import Matching

Kind = Literal["parakeet", "wav2vec2-conformer"]
Method = Literal["whole", "l0", "taylor", "magnitude", "random", "layerdrop"]

KINDS: tuple[Kind, ...] = ("parakeet", "wav2vec2-conformer")
SIZE, MACS = "params=0.5", "macs=0.5"
SEEDS = 3

# A step of the second takes three times as long.
STEPS: dict[Kind, int] = {"parakeet": 4800, "wav2vec2-conformer": 1200}
# Of L0; the others remove first, so that all steps follow.
AFTER_REMOVAL: dict[Kind, int] = {"parakeet": 3200, "wav2vec2-conformer": 400}


@dataclass(frozen=True)
class Cell:
    """One recogniser.

    kind: of recogniser, by its family. method: what says which members go; "whole" for none, the recogniser that is
    only trained on. matching: which layers learn from the teacher's. budget: in parameters or in MACs.
    """

    kind: Kind
    method: Method
    matching: Matching = "fixed"
    budget: str = SIZE
    seed: int = 0

    @property
    def name(self) -> str:
        made = [] if self.method == "whole" else [self.matching, self.budget.replace("=", "-")]
        return "_".join([self.kind, self.method, *made, f"seed-{self.seed}"])

    @property
    def run_seed(self) -> int:
        """Of the run. A stage draws from its run's seed plus its number, so neighbours would share theirs."""
        return 10 * (self.seed + 1)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def grid() -> list[Cell]:
    """All cells, the most telling first: what is unfinished already tells something.

    The aim is in size and in latency, so what is nearest to it has a budget in MACs, too. A whole one has several
    seeds since every other cell is compared with it.
    """
    first = [
        cell
        for kind in KINDS
        for cell in (
            Cell(kind, "whole"),
            Cell(kind, "l0"),
            Cell(kind, "l0", budget=MACS),
            Cell(kind, "taylor"),
            Cell(kind, "taylor", budget=MACS),
            Cell(kind, "magnitude"),
            Cell(kind, "layerdrop"),
            Cell(kind, "random"),
            Cell(kind, "l0", "free"),
            Cell(kind, "l0", "random"),
        )
    ]
    seeds = [
        cell
        for seed in range(1, SEEDS)
        for kind in KINDS
        for cell in (
            Cell(kind, "whole", seed=seed),
            *(Cell(kind, method, budget=budget, seed=seed) for method in ("l0", "taylor") for budget in (SIZE, MACS)),
        )
    ]
    return [*first, *seeds]
