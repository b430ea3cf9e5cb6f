"""Factors back to a matrix, where that is the smaller of the two."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from diminuendo.structure.axis import Axis
from diminuendo.structure.shape import Shape


def multiply_back(axes: Sequence[Axis], state: Mapping[str, Tensor], shape: Shape) -> tuple[dict[str, Tensor], Shape]:
    """The state and the shape, with those matrices dense again whose factors would be no smaller.

    A dense matrix has no ranks in the shape. axes: those of which ranks were free.
    """
    kept, left = dict(state), dict(shape)
    for axis in axes:
        if axis.kind != "ranks":
            continue
        path = axis.slices[0].parameter.removesuffix(".down.weight")
        down, up = kept.get(f"{path}.down.weight"), kept.get(f"{path}.up.weight")
        if down is not None and up is not None:
            if down.numel() + up.numel() < len(up) * down.shape[1]:
                continue
            product = up.double().flatten(1) @ down.double().flatten(1)
            kept[f"{path}.weight"] = product.to(up.dtype).reshape(*product.shape, *up.shape[2:])
        del left[axis.name]
        for factor in ("down", "up"):  # one alone has nothing to read or nobody to write for
            kept.pop(f"{path}.{factor}.weight", None)
        if f"{path}.up.bias" in kept:
            kept[f"{path}.bias"] = kept.pop(f"{path}.up.bias")
    return kept, left
