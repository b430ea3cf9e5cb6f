"""Which attention is the faster one to train with."""

import torch

from diminuendo.families import Model
from diminuendo.training.config import TrainingConfig

SHORT_SECONDS = 5.0


def choose_attention(model: Model, training: TrainingConfig, device: torch.device) -> None:
    """Makes attention eager, in place, for bf16 on CPUs and clips of at most SHORT_SECONDS; else it stays as it is.

    There torch 2.13's fused attention takes two to five times as long, most of it in the backward pass (docs/LOG.md).
    Eager attention holds its maps, which grow with the square of a clip's length, and at 10 s gains nothing.
    """
    if device.type == "cpu" and training.precision == "bf16" and training.max_seconds <= SHORT_SECONDS:
        model.set_attn_implementation("eager")
