"""Which of several ways to compute the same is the fastest to train with."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from diminuendo.families import Model
from diminuendo.training.config import TrainingConfig
from diminuendo.training.grouped_conv import grouped_convolution

SHORT_SECONDS = 5.0


def choose_attention(model: Model, training: TrainingConfig, device: torch.device) -> None:
    """Makes attention eager, in place, for bf16 on CPUs and clips of at most SHORT_SECONDS; else it stays as it is.

    There torch 2.13's fused attention takes two to five times as long, most of it in the backward pass (docs/LOG.md).
    Eager attention holds its maps, which grow with the square of a clip's length, and at 10 s gains nothing.
    """
    if device.type == "cpu" and training.precision == "bf16" and training.max_seconds <= SHORT_SECONDS:
        model.set_attn_implementation("eager")


def choose_convolution(model: nn.Module) -> list[nn.Conv1d]:
    """Lets positional convolutions compute by `grouped_convolution`, in place, and gives those that did not yet."""
    found = []
    for conv in model.modules():
        if not isinstance(conv, nn.Conv1d) or "_conv_forward" in conv.__dict__:
            continue
        if 1 < conv.groups < conv.in_channels and conv.stride == conv.dilation == (1,):
            assert conv.padding_mode == "zeros"
            assert isinstance(conv.padding[0], int)
            by = partial(grouped_convolution, padding=conv.padding[0], groups=conv.groups)
            conv._conv_forward = by  # type: ignore[method-assign]
            found.append(conv)
    return found


@contextmanager
def convolution_chosen(model: nn.Module) -> Iterator[None]:
    """As `choose_convolution`, for a while: what is counted, saved or somebody else's keeps its own."""
    found = choose_convolution(model)
    try:
        yield
    finally:
        for conv in found:
            del conv.__dict__["_conv_forward"]
