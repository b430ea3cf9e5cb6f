"""The configuration of a fine-tuning."""

from dataclasses import dataclass

from diminuendo.errors import UserError
from diminuendo.training.recognition_config import RecognitionConfig


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RecognitionConfig):
    """A complete configuration of a recogniser's training.

    Clips longer than max_seconds, or than a batch, are left out.
    learning_rate: of the encoder. warm_up: the fraction of steps in which rates rise; they fall linearly afterwards.
    """

    steps: int = 10_000
    max_seconds: float = 20.0
    learning_rate: float = 5e-4
    warm_up: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task is None:
            raise UserError("a fine-tuning needs a task: give --task, or leave it out for MODEL's own")
        if not 0 <= self.warm_up <= 1:
            raise UserError(f"warm_up is a fraction of the steps, from 0 to 1; got {self.warm_up}")
