"""What every training is told."""

from dataclasses import dataclass

from diminuendo.data.sampling import BatchSettings
from diminuendo.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What every training has to be told; its results depend on it.

    seconds_per_batch: of audio, for every process and accumulated batch; its clips are cropped to max_seconds.
    accumulate: batches an optimiser step. precision: of the forward pass; weights and optimiser are fp32. clip: the
    largest norm of a gradient.
    """

    steps: int
    seconds_per_batch: float = 60.0
    max_seconds: float = 15.0
    accumulate: int = 1
    precision: str = "fp32"
    seed: int = 0
    weight_decay: float = 0.01
    clip: float = 10.0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("accumulate", 1), ("seed", 0)):
            if not least <= getattr(self, name) < 2**32:
                raise UserError(f"--{name} must be at least {least} and below 2^32, got {getattr(self, name)}")

    def batch_settings(
        self, *, crop_to_shortest: bool = True, offset: int = 0, rank: int = 0, world_size: int = 1
    ) -> BatchSettings:
        """Of the batches of one stage; offset: what sets their order apart from that of other stages."""
        return BatchSettings(
            seconds_per_batch=self.seconds_per_batch,
            max_seconds=self.max_seconds,
            crop_to_shortest=crop_to_shortest,
            seed=self.seed + offset,
            rank=rank,
            world_size=world_size,
        )


@dataclass(frozen=True)
class LoopConfig:
    """Where a run happens and what is seen of it; its results do not depend on it.

    log_every, checkpoint_every: steps; 0 means some 200 log lines and 20 checkpoints a stage. Where steps are long
    there is a line every LOG_SECONDS and a checkpoint every CHECKPOINT_SECONDS as well.
    """

    device: str = "auto"
    log_every: int = 0
    checkpoint_every: int = 0
    quiet: bool = False
