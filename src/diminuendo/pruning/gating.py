"""Gates on a model while it trains: a parametrisation of every weight that reads a gated member.

Gating the weight and not the activation makes gating and removal one operation, and needs no hook in the model's code.
"""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils import parametrize

from diminuendo.modules.kept_norm import KeptLayerNorm
from diminuendo.pruning import hard_concrete
from diminuendo.structure.axis import Axis, Selection

# A member that stays keeps at least this much of itself: a gate of zero would count in norms and never learn again.
KEPT_GATE_FLOOR = 0.01
# Where log_alpha may go: far enough that a shut gate costs nothing (P(open) = 0.0016), near enough to come back.
LOG_ALPHA_BOUND = 8.0


class Gates(nn.Module):
    """One log_alpha for every member of every axis, in one vector, and the current gates.

    `values` are the gates that the model sees, [members]: after `sample` a draw shared by the whole batch, after
    `evaluate` the gates without noise. At the start evaluation gates are exactly 1.
    """

    def __init__(self, axes: Sequence[Axis], *, drop_rate: float = 0.01, seed: int = 0) -> None:
        super().__init__()
        self.axes = tuple(axes)
        sizes = [axis.size for axis in self.axes]
        starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
        self.ranges = {axis.name: range(starts[i], starts[i + 1]) for i, axis in enumerate(self.axes)}
        self.seed = seed
        # The noise breaks ties between members, nothing else.
        noise = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(seed)) * 0.01
        start = hard_concrete.log_alpha_of_drop_rate(drop_rate)
        self.log_alpha = nn.Parameter(start + noise)
        self.values: Float[Tensor, " members"] = torch.ones(sum(sizes))

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
        self.values = hard_concrete.sample(self.log_alpha, uniform)

    def evaluate(self, selection: Selection | None = None) -> None:
        """Sets the gates without noise; with a selection, exactly its members are open."""
        with torch.no_grad():
            values = hard_concrete.evaluation_gate(self.log_alpha)
            if selection is not None:
                kept = torch.cat([selection[axis.name] for axis in self.axes]).to(values.device)
                values = values.clamp(min=KEPT_GATE_FLOOR) * kept
        self.values = values

    def is_open(self, axis: str) -> Bool[Tensor, " members"]:
        """Which members of an axis are there now; without gradient."""
        return self.values.detach()[self.of(axis)] > 0

    @torch.no_grad()
    def clamp(self) -> None:
        """Keeps log_alpha within reach; call after every optimiser step."""
        self.log_alpha.clamp_(-LOG_ALPHA_BOUND, LOG_ALPHA_BOUND)


class _GatedWeight(nn.Module):
    """weight x gates along one dimension (of the whole tensor, for a sublayer)."""

    owner: Int[Tensor, " length"]

    def __init__(self, gates: Gates, axis: Axis, dim: int | None, owner: Int[Tensor, " length"]) -> None:
        super().__init__()
        self.dim, self.axis = dim, axis.name
        self._gates = [gates]  # in a list, so that the gates do not become a submodule of every weight
        self.register_buffer("owner", owner, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        gates = self._gates[0]
        values = gates.values[gates.of(self.axis)].to(weight.device)
        if self.dim is None:
            return weight * values
        shape = [1] * weight.dim()
        shape[self.dim] = -1
        return weight * values[self.owner].view(shape)


def _split(name: str) -> tuple[str, str]:
    module, _, leaf = name.rpartition(".")
    return module, leaf


def attach(model: nn.Module, gates: Gates) -> None:
    """Puts the gates on the model: its weights become parametrised, its norms mindful of gates."""
    for axis in gates.axes:
        for site in axis.gates:
            path, leaf = _split(site.parameter)
            module = model.get_submodule(path)
            weight = getattr(module, leaf)
            length = axis.size if site.dim is None else weight.shape[site.dim]
            owner = site.members(axis.size, length) if site.dim is not None else torch.zeros(1, dtype=torch.long)
            assert bool((owner >= 0).all()), f"{site.parameter}: a gated dimension belongs to its axis as a whole"
            gated = _GatedWeight(gates, axis, site.dim, owner.to(weight.device))
            parametrize.register_parametrization(module, leaf, gated)
        for path in axis.norms:
            parent, leaf = _split(path)
            norm = model.get_submodule(path)
            assert isinstance(norm, nn.LayerNorm)
            setattr(model.get_submodule(parent), leaf, KeptLayerNorm(norm, partial(gates.is_open, axis.name)))


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a gated model as if it had never been gated, with the current gates multiplied in."""
    state = {name: value.detach() for name, value in model.state_dict().items() if ".parametrizations." not in name}
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for leaf in module.parametrizations:
                state[f"{path}.{leaf}"] = getattr(module, str(leaf)).detach()
    return state
