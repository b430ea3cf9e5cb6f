"""Low rank as an axis: of every matrix inside a sublayer, its ranks, where it is factored."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from diminuendo.modules.low_rank import LowRank, can_be_factored, factored
from diminuendo.structure.axis import Axis, Slice


def matrices(model: nn.Module, axes: Sequence[Axis], dense_only: Sequence[str] = ()) -> Iterator[tuple[str, Axis]]:
    """Paths of what can be factored or is, each with the sublayer around it.

    dense_only: names of modules that are used by other ways than being called.
    """
    found: dict[str, Axis] = {}
    for axis in axes:
        if axis.kind != "sublayer":
            continue
        for piece in axis.slices:
            path = piece.parameter.rpartition(".")[0]
            if isinstance(model.get_submodule(path.rpartition(".")[0]), LowRank):
                path = path.rpartition(".")[0]
            found[path] = axis
    for path, axis in found.items():
        module = model.get_submodule(path)
        if isinstance(module, LowRank) or (can_be_factored(module) and path.rpartition(".")[2] not in dense_only):
            yield path, axis


def factorise(model: Any, axes: Sequence[Axis], dense_only: Sequence[str] = ()) -> Any:
    """Factors every matrix inside a sublayer, at full rank and in place: nothing changes but the weights' form."""
    for path, _ in list(matrices(model, axes, dense_only)):
        parent, _, leaf = path.rpartition(".")
        dense = model.get_submodule(path)
        if not isinstance(dense, LowRank):
            setattr(model.get_submodule(parent), leaf, factored(dense))
    return model


def with_ranks(model: nn.Module, axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """Axes that were declared as of dense matrices, as of their factors where there are any, and the ranks of those.

    The rows of a matrix are those of `up`, its columns those of `down`.
    """
    factors = [(path, axis) for path, axis in matrices(model, axes) if isinstance(model.get_submodule(path), LowRank)]
    if not factors:
        return tuple(axes)
    paths = {path for path, _ in factors}
    found = []
    for axis in axes:
        # A sublayer's gate acts once, on what writes its output.
        once = [piece for piece in axis.gates if not piece.parameter.endswith(".down.weight")]
        slices, gates = (tuple(_of_factors(piece, paths) for piece in pieces) for pieces in (axis.slices, once))
        found.append(replace(axis, slices=slices, gates=gates))
    for path, around in factors:
        name = around.name + path[path.rindex(around.name) + len(around.name) :]
        gate = Slice(f"{path}.up.weight", 1)
        rank = len(model.get_submodule(f"{path}.down").weight)  # type: ignore[arg-type]
        owned = (Slice(f"{path}.down.weight", 0), gate)
        found.append(Axis(f"{name}.ranks", "ranks", rank, owned, (gate,), minimum=1, parent=around.name))
    return tuple(found)


def _of_factors(piece: Slice, paths: set[str]) -> Slice:
    path, _, leaf = piece.parameter.rpartition(".")
    if path not in paths or piece.dim is None:
        return piece
    factor = "down" if leaf == "weight" and piece.dim == 1 else "up"
    return replace(piece, parameter=f"{path}.{factor}.{leaf}")
