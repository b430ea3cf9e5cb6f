"""What conformers with a size of its own for every layer have in common."""

from typing import Any

from torch import nn

from .ragged import Empty, Removed, Shape, resize, size


def shrink_convolution(
    layer: Any,
    part: str,
    name: str,
    shape: Shape,
    norm: str,
    *,
    before: str | None = None,
    first: str = "pointwise_conv1",
    depthwise: str = "depthwise_conv",
    second: str = "pointwise_conv2",
) -> None:
    """Gives the convolution module layer.part as many channels as the axis `name`.part keeps.

    first, depthwise, norm, second: its parts, in the order of the signal; `first` writes two rows for every channel.
    before: a norm inside of the module that reads the residual stream. Without channels it stays, read by nothing, as
    the norms before other sublayers do.
    """
    channels, module = size(shape[f"{name}.{part}.channels"]), getattr(layer, part)
    if not shape[f"{name}.{part}"]:
        setattr(layer, part, Removed())
    elif channels == 0:
        last = getattr(module, second)
        empty: nn.Module = Removed() if last.bias is None else Empty(second, last.out_channels)
        if before is not None:
            setattr(empty, before, getattr(module, before))
        setattr(layer, part, empty)
    else:
        resize(getattr(module, first), writes=2 * channels)
        resize(getattr(module, depthwise), writes=channels)
        resize(getattr(module, norm), writes=channels)
        resize(getattr(module, second), reads=channels)


def drop_norms_before(layer: Any, name: str, shape: Shape, norms: dict[str, str]) -> None:
    """The norm before a sublayer goes with it, since it has no other reader. norms: of sublayers, by their names."""
    for part, norm in norms.items():
        if not shape[f"{name}.{part}"]:
            setattr(layer, norm, nn.Identity())
