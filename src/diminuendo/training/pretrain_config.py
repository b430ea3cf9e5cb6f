"""The configuration of a pretraining."""

from dataclasses import dataclass

from diminuendo.errors import UserError
from diminuendo.training.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainingConfig):
    """A complete configuration of a pretraining.

    steps: of all stages together; front_end, iteration_1: fractions of them, the rest is for later iterations, equally.
    iterations: 2 as for HuBERT Base; each later one clusters what the one before has learned.
    A batch's clips are cropped to the shortest. masked: the fraction of masked frames, in spans of `span` frames (of
    20 ms). target_layer: whose states later iterations cluster, None for the middle one. cluster_seconds: of audio,
    from which cluster centres and clips' statistics are found. centred: cluster frames without their clip's mean.
    clip_weights: of the loss that asks for a clip's statistics (see ClipHead), in the warm-up and in the iterations.
    warm_up, decay: fractions of a stage's steps in which its learning rate rises and falls.

    The defaults are for tiny models and short runs; HuBERT Base had spans of 10 and a learning rate of 5e-4.
    """

    steps: int = 10_000
    front_end: float = 0.15
    iteration_1: float = 0.35
    iterations: int = 2
    seconds_per_batch: float = 20.0
    max_seconds: float = 4.0
    num_clusters: int = 100
    cluster_seconds: float = 1800.0
    target_layer: int | None = None
    centred: bool = False
    clip_weights: tuple[float, float] = (0.0, 0.0)
    masked: float = 0.5
    span: int = 5
    front_end_learning_rate: float = 4e-3
    learning_rate: float = 1e-3
    warm_up: float = 0.05
    decay: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        first, second = self.front_end, self.iteration_1
        if (first != 1 and (first < 0 or second <= 0)) or second < 0 or first + second > 1:
            raise UserError(
                "front_end and iteration_1 are fractions of the steps, the second above 0 unless the first is 1, "
                f"together at most 1; got {first:g} and {second:g}"
            )
        if self.iterations < 2:
            raise UserError(
                f"iterations must be at least 2, got {self.iterations}; for one give it all steps: iteration_1 = "
                "1 - front_end"
            )
        if not 0 < self.masked < 1 or self.span < 1 or self.num_clusters < 2:
            raise UserError(
                f"masked must lie in (0, 1), span be at least 1, num_clusters at least 2; got {self.masked:g}, "
                f"{self.span} and {self.num_clusters}"
            )

    @property
    def stages(self) -> tuple[str, ...]:
        return ("front_end", *(f"iteration_{i + 1}" for i in range(self.iterations)))

    @property
    def stage_steps(self) -> dict[str, int]:
        first = round(self.steps * self.front_end)
        second = round(self.steps * self.iteration_1)
        rest, later = self.steps - first - second, self.iterations - 1
        shares = [rest * (i + 1) // later - rest * i // later for i in range(later)]
        return dict(zip(self.stages, (first, second, *shares), strict=True))
