"""Gates on a model while it trains: a parametrisation of every weight that a gated member touches.

Gating the weight and not the activation makes gating and removal one operation, and needs no hook in the model's code.

A member whose sampled gate is exactly 0 gives nothing and learns nothing in that step: nothing that it touches has a
gradient. So it is left out of the matrices, and the joint stage becomes faster as the model becomes smaller.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils import parametrize

from diminuendo.modules.kept_norm import KeptGroupNorm, KeptLayerNorm
from diminuendo.modules.present import follow_sizes
from diminuendo.pruning import hard_concrete
from diminuendo.structure.axis import Axis, Selection

# A member that stays keeps at least this much of itself: a gate of zero would count in norms and never learn again.
KEPT_GATE_FLOOR = 0.01
# Where log_alpha may go: far enough that a shut gate costs nothing (P(open) = 0.0016), near enough to come back.
LOG_ALPHA_BOUND = 8.0
# Some shut members take part after all, so that widths are such as matrix units want. Until gates close, a draw shuts
# few, and 3,071 neurons would take longer than 3,072.
PRESENT_MULTIPLE = 32

# A layout is how the members of an axis lie along a dimension of a weight; many weights share one. What is looked up of
# it: which entries are present (None: all of them), and the gate of each.
_Placed = tuple[Int[Tensor, " entries"] | None, Float[Tensor, " entries"]]


class Gates(nn.Module):
    """One log_alpha for every member of every axis, in one vector, and the current gates.

    `values` are the gates that the model sees, [members]: after `sample` a draw shared by the whole batch, after
    `evaluate` the gates without noise. With the default drop rate evaluation gates are exactly 1 at the start.

    `present` says which members take part in a forward pass. After `sample` members whose gate is 0 do not; after
    `evaluate` all do, so that gates of 0 can be compared with removal.
    """

    def __init__(
        self,
        axes: Sequence[Axis],
        *,
        drop_rate: float = 0.01,
        drop_rates: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        """drop_rate: d of the start, log_alpha = log((1 - d) / d); drop_rates: those of some kinds of axes.

        P(shut) is lower: 0.002 for 0.01, 0.17 for 0.5.
        """
        super().__init__()
        self.axes = tuple(axes)
        sizes = [axis.size for axis in self.axes]
        starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
        self.ranges = {axis.name: range(starts[i], starts[i + 1]) for i, axis in enumerate(self.axes)}
        self.seed = seed
        # The noise breaks ties between members, nothing else.
        noise = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(seed)) * 0.01
        rates = [(drop_rates or {}).get(axis.kind, drop_rate) for axis in self.axes]
        start = torch.tensor([hard_concrete.log_alpha_of_drop_rate(rate) for rate in rates])
        self.log_alpha = nn.Parameter(start.repeat_interleave(torch.tensor(sizes)) + noise)
        self._layouts: dict[tuple[str, tuple[int, ...]], int] = {}
        # Of all layouts in one: who owns each entry (one past the last member: nobody), and where it is in its layout.
        self._owner, self._within = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        self.set(torch.ones(sum(sizes)))

    def of(self, axis: str) -> slice:
        """Where an axis's members are in `log_alpha` and `values`."""
        members = self.ranges[axis]
        return slice(members.start, members.stop)

    @property
    def open_probability(self) -> Float[Tensor, " members"]:
        return hard_concrete.open_probability(self.log_alpha)

    def sample(self, draw: int) -> None:
        """Draws the gates of forward pass number `draw`: the same for all processes, and again after a resume."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + draw)
        uniform = torch.rand(self.log_alpha.shape, generator=generator).to(self.log_alpha.device)
        self.set(hard_concrete.sample(self.log_alpha, uniform), leave_out=True)

    def evaluate(self, selection: Selection | None = None, floor: float = KEPT_GATE_FLOOR) -> None:
        """Sets the gates without noise; with a selection, exactly its members are open, at least by `floor`."""
        with torch.no_grad():
            values = hard_concrete.evaluation_gate(self.log_alpha)
            if selection is not None:
                kept = torch.cat([selection[axis.name] for axis in self.axes]).to(values.device)
                values = values.clamp(min=floor) * kept
        self.set(values)

    def set(self, values: Float[Tensor, " members"], *, leave_out: bool = False) -> None:
        """Makes these the gates; with `leave_out` members whose gate is 0 take no part."""
        self.values = values
        self._opened: Bool[np.ndarray, " members"] = values.detach().cpu().numpy() > 0
        self.present: Bool[np.ndarray, " members"] = np.ones_like(self._opened)
        if leave_out:
            self.present = np.concatenate([self._present(axis) for axis in self.axes])
        self._place()

    def _place(self) -> None:
        """Looks up what every layout needs, for all together.

        For every weight by itself it is a thousand small operations, and a GPU waits for them.
        """
        entries = np.flatnonzero(np.append(self.present, True)[self._owner])  # what nobody owns stays
        lengths = [len(owner) for _, owner in self._layouts]
        counts = np.diff(np.searchsorted(entries, np.cumsum([0, *lengths]))).tolist()
        members = self._owner[entries].clip(max=len(self.present) - 1)  # of what nobody owns nothing is gated
        device = self.values.device
        gates = torch.split(self.values[torch.from_numpy(members).to(device)], counts)
        places = torch.split(torch.from_numpy(self._within[entries]).to(device), counts)
        self.placed: list[_Placed] = [
            (None if len(place) == length else place, gate)
            for place, gate, length in zip(places, gates, lengths, strict=True)
        ]

    def layout(self, axis: str, owner: Int[Tensor, " length"]) -> int:
        """The number, in `placed` from the next `set` on, of the layout in which `owner` has the members of an axis.

        owner: which member owns each entry of a dimension; -1 where none does.
        """
        key = (axis, tuple(owner.tolist()))
        if key not in self._layouts:
            self._layouts[key] = len(self._layouts)
            numbers = torch.where(owner < 0, len(self.log_alpha), owner + self.ranges[axis].start)
            self._owner = np.append(self._owner, numbers.numpy())
            self._within = np.append(self._within, np.arange(len(owner)))
        return self._layouts[key]

    def _present(self, axis: Axis) -> Bool[np.ndarray, " size"]:
        """The members that are open, at least one (an attention of no heads would have no shape), of widths more."""
        present = np.ones(axis.size, dtype=bool)
        if axis.kind == "sublayer" or axis.positions is not None:
            return present  # a sublayer is left out by its members; where positions matter, all of them stay
        opened = self._opened[self.of(axis.name)]
        if axis.parent is not None and not self._opened[self.of(axis.parent)].any():
            opened = np.zeros_like(opened)
        multiple = PRESENT_MULTIPLE if axis.is_width and self._rounded_up(axis) else 1
        count = max(1, math.ceil(opened.sum() / multiple) * multiple)
        present[np.argsort(~opened, kind="stable")[count:]] = False
        return present

    def _rounded_up(self, axis: Axis) -> bool:
        """Whether this width is filled up with members that are shut.

        A norm over it has to leave those out at each frame: on a CPU that costs more than an odd width, on a GPU less.
        """
        return not axis.norms or self.values.device.type == "cuda"

    def is_open(self, axis: str, block: int = 1) -> Bool[Tensor, " entries"]:
        """Of an axis's members that take part: which have a gate above 0. On the CPU, where a norm decides by it.

        block: how many entries in a row each member owns.
        """
        members = self.of(axis)
        return torch.from_numpy(self._opened[members][self.present[members]].repeat(block))

    @torch.no_grad()
    def clamp(self) -> None:
        """Keeps log_alpha within reach; call after every optimiser step."""
        self.log_alpha.clamp_(-LOG_ALPHA_BOUND, LOG_ALPHA_BOUND)


@dataclass(frozen=True)
class _Touch:
    """One axis on one dimension of a weight (None: on the whole weight): its layout, and whether its gates act."""

    dim: int | None
    layout: int
    gated: bool


class _Gated(nn.Module):
    """What is present of a weight, times gates."""

    def __init__(self, gates: Gates, touches: Sequence[_Touch]) -> None:
        super().__init__()
        self.touches = tuple(touches)
        self._gates = [gates]  # in a list, so that the gates do not become a submodule of every weight

    def forward(self, weight: Tensor) -> Tensor:
        for touch in self.touches:
            entries, gate = self._gates[0].placed[touch.layout]
            dim = weight.dim() - 1 if touch.dim is None else touch.dim
            if entries is not None:
                weight = weight.index_select(dim, entries)
            if touch.gated:
                weight = weight * gate.view(-1, *[1] * (weight.dim() - 1 - dim))
        return weight


def _split(name: str) -> tuple[str, str]:
    module, _, leaf = name.rpartition(".")
    return module, leaf


def _tensor(model: nn.Module, name: str) -> Tensor:
    """A parameter or a buffer."""
    path, leaf = _split(name)
    tensor = getattr(model.get_submodule(path), leaf)
    assert isinstance(tensor, Tensor), name
    return tensor


def attach(model: nn.Module, gates: Gates, axes: Sequence[Axis] | None = None) -> None:
    """Puts the gates on the model: its weights become parametrised.

    Its norms and depthwise convolutions become mindful of who is present. axes: what in this model belongs to axes that
    the gates are of, if it is not these themselves.
    """
    touches: dict[str, list[_Touch]] = {}
    for axis in gates.axes if axes is None else axes:
        for piece in dict.fromkeys((*axis.slices, *axis.gates)):
            gated = piece in axis.gates
            if not gated and (piece.dim is None or axis.positions is not None):
                continue  # goes at removal only
            owner = torch.zeros(1, dtype=torch.long)
            if piece.dim is not None:
                owner = piece.members(axis.size, _tensor(model, piece.parameter).shape[piece.dim])
            assert not gated or bool((owner >= 0).all()), f"{piece.parameter}: gates cover a dimension as a whole"
            touch = _Touch(piece.dim, gates.layout(axis.name, owner), gated)
            touches.setdefault(piece.parameter, []).append(touch)
        for path in axis.norms:
            block = _width(model.get_submodule(path)) // axis.size
            _replace(model, path, partial(KeptLayerNorm, kept=partial(gates.is_open, axis.name, block)))
    touched = {_split(name)[0] for name in touches}
    for path, module in list(model.named_modules()):
        if path in touched and isinstance(module, nn.GroupNorm):
            _replace(model, path, KeptGroupNorm)
        elif path in touched:
            follow_sizes(module)
    gates.set(gates.values)
    for name, found in touches.items():
        path, leaf = _split(name)
        parametrize.register_parametrization(model.get_submodule(path), leaf, _Gated(gates, found))


def _width(norm: nn.Module) -> int:
    assert isinstance(norm, nn.LayerNorm), type(norm)
    return norm.normalized_shape[0]


def _replace(model: nn.Module, path: str, new: Callable[[Any], nn.Module]) -> None:
    parent, leaf = _split(path)
    setattr(model.get_submodule(parent), leaf, new(model.get_submodule(path)))


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a gated model as if it had never been gated, with the gates of `evaluate` multiplied in."""
    state = {name: value.detach() for name, value in model.state_dict().items() if "parametrizations." not in name}
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for leaf in module.parametrizations:
                state[f"{path}.{leaf}".removeprefix(".")] = getattr(module, str(leaf)).detach()
    return state
