"""What is compared: one cell for every model that is made and probed."""

from dataclasses import dataclass
from typing import Any, Literal

Method = Literal["joint", "fixed", "prune-only", "one-shot", "learned-shape", "learned-shape-fresh"]

STEPS = 3000
RATES = (4e-3, 2e-3, 8e-3, 1.6e-2, 1e-3)  # the likeliest first: what is unfinished already tells something
COMPARED: tuple[Method, ...] = ("joint", "fixed", "prune-only", "one-shot")
# What has a shape of its own, and the learned shape from the same weights.
SAME_START: dict[Method, Method] = {"one-shot": "learned-shape", "fixed": "learned-shape-fresh"}
# Changes of the joint run, one at a time; one-shot removal, too, is done without convolutions.
ABLATIONS: dict[str, dict[str, Any]] = {
    "without-stage-2": {"distil_steps": 0, "steps": STEPS},
    "without-convolutions": {"fixed": ("channels", "groups")},
    "published-start": {"neuron_drop_rate": 0.5},
    "published-budget": {"ramp": 0.1, "multiplier_learning_rate": 0.02, "two_sided": True},
    "published-gate-rate": {"gate_learning_rate": 0.02},
    "all-layers": {"layers": (0, 1, 2, 3, 4, 5)},
}


@dataclass(frozen=True)
class Cell:
    """One model: by a method, with a learning rate, to a kept fraction of the parameters, from some of the audio.

    ablation: a key of ABLATIONS. "learned-shape" is trained anew from the teacher's largest members in the shape that
    joint found, as "one-shot" from them in its own; "learned-shape-fresh" in that shape from the teacher's convolutions
    and fresh weights, as "fixed" in its own.
    """

    method: Method
    rate: float
    keep: float = 0.25
    seed: int = 0
    audio: float = 1.0
    steps: int = STEPS
    ablation: str = ""

    @property
    def needs_learned_shape(self) -> bool:
        return self.method.startswith("learned-shape")

    @property
    def run_seed(self) -> int:
        """Of the run. A stage draws from its run's seed plus its number, so neighbours would share theirs."""
        return 10 * (self.seed + 1)

    @property
    def name(self) -> str:
        parts = [self.method, f"{self.keep:g}"]
        parts += [self.ablation] if self.ablation else []
        parts += [f"audio-{self.audio:g}"] if self.audio < 1 else []
        parts += [f"steps-{self.steps}"] if self.steps != STEPS else []
        return "_".join([*parts, f"lr-{self.rate:g}", f"seed-{self.seed}"])


def tuning() -> list[Cell]:
    """Each method with each rate, one seed; the rate that is best on dev is the method's from then on."""
    return [Cell(method, rate) for rate in RATES for method in COMPARED]


def comparison(rates: dict[Method, float]) -> list[Cell]:
    """All that follows, the most telling first. `rates`: of the methods that are tuned."""
    cells: list[Cell] = []

    def add(*methods: Method, like: Method | None = None, **changes: Any) -> None:
        """Of the methods whose rate is known, or the rate of the method that they are `like`."""
        found = ((method, rates.get(like or method)) for method in methods)
        cells.extend(Cell(method, rate, **changes) for method, rate in found if rate is not None)

    for seed in (1, 2):
        add(*COMPARED, seed=seed)
    add("prune-only", keep=1.0)  # nothing is removed: what the teacher gains in as many steps more
    for keep in (0.125, 0.5):
        add(*COMPARED, keep=keep)
    few: tuple[Method, ...] = ("joint", "fixed", "prune-only")
    for audio in (0.1, 0.3):
        add(*few, audio=audio)
    add(*few, steps=STEPS // 4)
    for like, method in SAME_START.items():
        add(method, like=like)
    for name in ABLATIONS:
        add("joint", ablation=name)
    add("one-shot", ablation="without-convolutions")
    return cells
