"""The configurations of a pretraining: of one by clusters, for encoders that read waveforms, and of one by BEST-RQ."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from diminuendo.errors import UserError
from diminuendo.families import FAMILIES
from diminuendo.training.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainingConfig):
    """A complete configuration of a pretraining by clusters.

    steps: of all stages together; front_end, iteration_1: fractions of them, the rest is for later iterations, equally.
    iterations: 2 as for HuBERT Base; each later one clusters what the one before has learned.
    A batch's clips are cropped to the shortest. masked: the fraction of masked frames, in spans of `span` frames (of
    20 ms). target_layer: whose states later iterations cluster, None for the middle one. cluster_seconds: of audio,
    from which cluster centres and clips' statistics are found. centred: cluster frames without their clip's mean.
    clip_weights: of the loss that asks for a clip's statistics (see ClipHead), in the warm-up and in the iterations.
    warm_up, decay: fractions of a stage's steps in which its learning rate rises and falls.

    The defaults are for tiny models and short runs; HuBERT Base had spans of 10 and a learning rate of 5e-4.
    """

    objective: Literal["clusters"] = "clusters"
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
        _expect_objective(self, "clusters")
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

    @property
    def trial(self) -> "PretrainConfig":
        """Two steps of every stage that has any."""
        share = 1 / len(self.stages)
        return replace(self, steps=2 * len(self.stages), front_end=share, iteration_1=share, cluster_seconds=60.0)


@dataclass(frozen=True, kw_only=True)
class BestRQConfig(TrainingConfig):
    """A complete configuration of a pretraining by BEST-RQ, for encoders that read features.

    A batch's clips are cropped to the shortest. codebooks, codes, code_dim: random codebooks, what each holds, and its
    dimensions. masked, span_seconds: the fraction of masked features, in spans so long. lookaheads: of a streaming
    encoder, in its frames, one of which is drawn for every batch; () for those of 0, 1, 6 and 13 (of 80 ms, as
    published) and the configuration's own that leave it some past. warm_up, decay: fractions of the steps in which the
    learning rate rises and falls.

    The masks are the published ones (spans of 400 ms begin at a hundredth of all features); 8,192 codes of 16
    dimensions were published, for 600 million parameters. The other defaults are for tiny models and short runs.
    """

    objective: Literal["best_rq"] = "best_rq"
    steps: int = 10_000
    seconds_per_batch: float = 20.0
    max_seconds: float = 4.0
    codebooks: int = 1
    codes: int = 256
    code_dim: int = 16
    masked: float = 0.331
    span_seconds: float = 0.4
    lookaheads: tuple[int, ...] = ()
    learning_rate: float = 2e-3
    warm_up: float = 0.05
    decay: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        _expect_objective(self, "best_rq")
        if not 0 < self.masked < 1 or self.span_seconds <= 0:
            raise UserError(
                f"masked must lie in (0, 1) and span_seconds be above 0; got {self.masked:g} and {self.span_seconds:g}"
            )
        for name, least in (("codebooks", 1), ("codes", 2), ("code_dim", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if any(lookahead < 0 for lookahead in self.lookaheads):
            raise UserError(f"lookaheads are frames, 0 or more; got {list(self.lookaheads)}")

    @property
    def stages(self) -> tuple[str, ...]:
        return ("best_rq",)

    @property
    def stage_steps(self) -> dict[str, int]:
        return {"best_rq": self.steps}

    @property
    def trial(self) -> "BestRQConfig":
        """Two steps."""
        return replace(self, steps=2)


AnyPretrainConfig = PretrainConfig | BestRQConfig


def config_class(model_config: Any) -> type[PretrainConfig] | type[BestRQConfig]:
    """Of the objective that can train an encoder of this transformers configuration, by what it reads."""
    return PretrainConfig if FAMILIES[model_config.model_type].reads_waveforms else BestRQConfig


def _expect_objective(config: AnyPretrainConfig, known: str) -> None:
    """From Python a setting may be anything, whatever its type says."""
    if config.objective != known:
        raise UserError(
            f"objective {config.objective!r}: this encoder has {known!r}; clusters are for encoders that read "
            "waveforms, best_rq is for those that read features"
        )
