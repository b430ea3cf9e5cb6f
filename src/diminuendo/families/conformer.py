"""Axes that all conformers have: their convolution modules' channels."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from diminuendo.families.parts import along, sublayer
from diminuendo.structure.axis import Axis, Slice


def convolution_axes(
    module: Any,
    name: str,
    prefix: str,
    norm: str,
    *,
    before: Sequence[Slice] = (),
    first: str = "pointwise_conv1",
    depthwise: str = "depthwise_conv",
    second: str = "pointwise_conv2",
) -> Iterator[Axis]:
    """The convolution module as a sublayer, and its channels.

    first, depthwise, norm, second: its parts, in the order of the signal. A channel has two rows of `first`, one in
    either half before the gated linear unit. before: a norm outside of the module that goes with it.
    """
    if not hasattr(module, second):  # nothing is left, or nothing that writes
        return
    yield sublayer(module, name, prefix, second, before)
    if not hasattr(module, first):
        return
    here = f"{prefix}{name}"
    channels = getattr(module, depthwise).out_channels
    gate = Slice(f"{here}.{second}.weight", 1)
    slices = (
        *along(getattr(module, first), f"{here}.{first}", offsets=(0, channels)),
        *along(getattr(module, depthwise), f"{here}.{depthwise}"),
        *along(getattr(module, norm), f"{here}.{norm}"),
    )
    over_channels = isinstance(getattr(module, norm), nn.LayerNorm)
    if not over_channels:
        slices += (Slice(f"{here}.{norm}.num_batches_tracked", None),)
    norms = (f"{here}.{norm}",) if over_channels else ()
    yield Axis(f"{name}.channels", "channels", channels, (*slices, gate), (gate,), norms, parent=name)
