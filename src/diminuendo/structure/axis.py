"""An axis: a set of interchangeable members inside a model, declared as plain data.

Everything else (gates, cost, removal, the saved shape, the report's layer map) is derived from this declaration.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

AxisKind = Literal["channels", "heads", "neurons", "groups", "sublayer", "ranks", "width"]


@dataclass(frozen=True)
class Slice:
    """The part of one parameter that belongs to the members of an axis.

    Member i owns the entries offset + i * block ... offset + (i + 1) * block - 1 along `dim`, for every offset: a
    member can own several places in one tensor (the two halves before a gated linear unit). `dim=None` is the
    whole tensor, which goes when no member stays: a parameter of an axis of one member, or a buffer.
    """

    parameter: str
    dim: int | None
    block: int = 1
    offsets: tuple[int, ...] = (0,)

    def members(self, size: int, length: int) -> Int[Tensor, " length"]:
        """Which of `size` members owns each of the `length` entries along `dim`; -1 where none does."""
        owner = torch.full((length,), -1, dtype=torch.long)
        for offset in self.offsets:
            owner[offset : offset + size * self.block] = torch.arange(size).repeat_interleave(self.block)
        return owner


@dataclass(frozen=True)
class Axis:
    """One axis of a model.

    name: where it is, the same for an encoder and for the recogniser around it.
    size: how many members there are now.
    slices: what disappears with a member.
    gates: what is multiplied by a member's gate (the weights that read it; for a sublayer, its output with bias).
    norms: modules whose statistics run over the members and must leave out those that are gone.
    minimum: how many must stay; 0 only where a residual path goes around.
    parent: the sublayer axis that takes this one with it.
    positions: for consumers that must know which members stay, the members' indices in the original model.
    """

    name: str
    kind: AxisKind
    size: int
    slices: tuple[Slice, ...]
    gates: tuple[Slice, ...]
    norms: tuple[str, ...] = ()
    minimum: int = 0
    parent: str | None = None
    positions: tuple[int, ...] | None = None

    @property
    def is_width(self) -> bool:
        """Whether kept sizes become widths of matrices, which hardware wants as multiples of 8 or 16."""
        return self.kind in ("channels", "neurons", "ranks", "width")


@dataclass(frozen=True)
class Product:
    """Activations multiplied with activations (attention's two products), for every of the `members` of `axis`.

    parent: the axis that `axis` goes with.
    """

    axis: str
    members: int
    macs_per_second: float
    parent: str | None = None


Selection = Mapping[str, Bool[Tensor, " members"]]
"""For every axis, which members stay."""
