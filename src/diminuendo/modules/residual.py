"""The residual stream of an encoder: which modules read and write it, and what is left of its width.

Modules are named by patterns of their paths, once for every kind of encoder. A ragged model gives them their sizes by
these, and the axis of the width is derived from the same.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Residual(NamedTuple):
    """Patterns of paths in an encoder.

    source: what writes the first state; reads, writes: matrices; norms: those over the stream's members.
    """

    source: str
    reads: str
    writes: str
    norms: str

    def modules(self, encoder: Any) -> Iterator[tuple[str, str, Any]]:
        """(which of the four, path, module) of all that there are."""
        for path, module in encoder.named_modules():
            for role, pattern in self._asdict().items():
                if re.fullmatch(pattern, path):
                    yield role, path, module


class Stream(NamedTuple):
    """The members of the residual stream that are left of `full`; None for all of them."""

    kept: list[int] | None
    full: int

    def spread(self, hidden: Tensor) -> Tensor:
        """[..., kept] to [..., full], zero where members are gone: for what reads heads or groups of the stream."""
        if self.kept is None:
            return hidden
        index = torch.tensor(self.kept, device=hidden.device)
        return hidden.new_zeros(*hidden.shape[:-1], self.full).index_copy(-1, index, hidden)

    def gather(self, hidden: Tensor) -> Tensor:
        """[..., full] to [..., kept]."""
        if self.kept is None:
            return hidden
        return hidden.index_select(-1, torch.tensor(self.kept, device=hidden.device))


def stream_of(shape: dict[str, Any], config: Any) -> Stream:
    """The stream of a model of some shape, in which a number stands for the first so many members."""
    full = config.hidden_size
    kept = shape.get("width", full)
    kept = [*range(kept)] if isinstance(kept, int) else kept
    return Stream(None if len(kept) == full else kept, full)
