"""What a model of some shape costs: parameters, multiply-accumulates per second of audio, and by a table latency.

A parameter's size is the product of its dimensions, and a dimension that an axis governs is proportional to the
number of that axis's members. So the cost is a polynomial in the axes' sizes; with the gates' independent
Bernoulli openings its expectation is the same polynomial in expected sizes (second moments where one axis lies on two
dimensions of a tensor).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diminuendo.structure.axis import Axis, Product
from diminuendo.structure.latency import LatencyTable, interpolated

_COUNTED = {"latency": "macs"}


@dataclass(frozen=True)
class CostModel:
    """Sum over terms of coefficient x product over factors of (rest + scale * moments[index]).

    `moments` is [1, E K_1 ... E K_n, E K_1^2 ... E K_n^2] for axes of sizes K_1 ... K_n.

    caps: the terms of a factored matrix's two factors, and that of the dense one, which has a coefficient of its own.
    Two factors of exact sizes cost no more than it, since they are multiplied back then. In the expectation there is no
    cap: it has no gradient at full rank.

    modules, module: which terms' MACs are whose; those of no module (module = len(modules)) take no time. table: of
    latencies, where they have been measured: the kind "latency", in milliseconds, is there only with it.
    """

    axes: tuple[Axis, ...]
    index: Int[Tensor, "terms factors"]
    scale: Float[Tensor, "terms factors"]
    rest: Float[Tensor, "terms factors"]
    coefficients: Mapping[str, Float[Tensor, " terms"]]
    caps: Int[Tensor, "caps 3"]
    cap_coefficients: Mapping[str, Float[Tensor, " caps"]]
    modules: tuple[str, ...]
    module: Int[Tensor, " terms"]
    table: LatencyTable | None = None

    def at_sizes(self, kind: str, sizes: Float[Tensor, " axes"]) -> Float[Tensor, ""]:
        """The cost ("params", "macs" or "latency") when axis i has exactly sizes[i] members."""
        return self._summed(kind, self._costs(kind, sizes))

    def macs_by_module(self, sizes: Float[Tensor, " axes"]) -> Float[Tensor, " modules"]:
        return self._by_module(self._costs("macs", sizes))

    def _costs(self, kind: str, sizes: Float[Tensor, " axes"]) -> Float[Tensor, " terms"]:
        kind = _COUNTED.get(kind, kind)
        products = self._products(sizes, sizes**2)
        costs = self.coefficients[kind].to(sizes.device) * products
        down, up, dense = self.caps.to(sizes.device).unbind(1)
        over = costs[down] + costs[up] - self.cap_coefficients[kind].to(sizes.device) * products[dense]
        return costs.index_add(0, down, -over.clamp(min=0))

    def _by_module(self, costs: Float[Tensor, " terms"]) -> Float[Tensor, " modules"]:
        sums = costs.new_zeros(len(self.modules) + 1)
        return sums.index_add(0, self.module.to(costs.device), costs)[:-1]

    def _summed(self, kind: str, costs: Float[Tensor, " terms"]) -> Float[Tensor, ""]:
        if kind != "latency":
            return costs.sum()
        macs = self._by_module(costs)
        return interpolated(self._grid.to(costs.device), torch.cat([macs, macs.sum()[None]])).sum()

    @cached_property
    def _grid(self) -> Float[Tensor, "2 curves points"]:
        assert self.table is not None, "latencies have not been measured"
        return self.table.grid(self.modules)

    def expected(self, kind: str, open_probability: Float[Tensor, " members"]) -> Float[Tensor, ""]:
        """The expected cost when every member stays with its own probability; differentiable."""
        owner = self._owner.to(open_probability.device)
        p = open_probability.double()
        zeros = torch.zeros(len(self.axes), dtype=p.dtype, device=p.device)
        mean = zeros.index_add(0, owner, p)
        variance = zeros.index_add(0, owner, p * (1 - p))
        coefficients = self.coefficients[_COUNTED.get(kind, kind)].to(p.device)
        return self._summed(kind, coefficients * self._products(mean, mean**2 + variance))

    @cached_property
    def _owner(self) -> Int[Tensor, " members"]:
        sizes = torch.tensor([axis.size for axis in self.axes], dtype=torch.long)
        return torch.repeat_interleave(torch.arange(len(sizes)), sizes)

    @property
    def full_sizes(self) -> Float[Tensor, " axes"]:
        return torch.tensor([float(axis.size) for axis in self.axes], dtype=torch.float64)

    def total(self, kind: str) -> float:
        """The cost with every member there."""
        return float(self.at_sizes(kind, self.full_sizes))

    def _products(self, first: Float[Tensor, " axes"], second: Float[Tensor, " axes"]) -> Float[Tensor, " terms"]:
        device = first.device
        moments = torch.cat([torch.ones(1, dtype=torch.float64, device=device), first.double(), second.double()])
        factors = self.rest.to(device) + self.scale.to(device) * moments[self.index.to(device)]
        return factors.prod(dim=1)


def cost_model(
    axes: Sequence[Axis],
    parameters: Mapping[str, torch.Size],
    positions_per_second: Mapping[str, float],
    products: Sequence[Product],
    modules: Mapping[str, str] | None = None,
) -> CostModel:
    """Derives the cost from the axes' declaration.

    parameters: the shape of every parameter that is saved.
    positions_per_second: for every weight that is multiplied with activations, at how many places per second of audio.
    products: what is multiplied without a parameter.
    modules: the path of the module that a weight, or a product by its axis, is timed with.
    """
    number = {axis.name: i + 1 for i, axis in enumerate(axes)}
    touching: dict[str, dict[int | None, list[tuple[Axis, int]]]] = {}
    for axis in axes:
        for piece in axis.slices:
            width = piece.block * len(piece.offsets)
            touching.setdefault(piece.parameter, {}).setdefault(piece.dim, []).append((axis, width))

    pairs = [axis.slices[0].parameter.removesuffix(".down.weight") for axis in axes if axis.kind == "ranks"]
    shapes = dict(parameters)
    for path in pairs:  # the dense matrix: the rows of `up`, the columns of `down`
        up, down = touching.get(f"{path}.up.weight", {}), touching.get(f"{path}.down.weight", {})
        touching[f"{path}.dense"] = {dim: found[dim] for dim, found in ((0, up), (1, down), (None, up)) if dim in found}
        shapes[f"{path}.dense"] = torch.Size([shapes[f"{path}.up.weight"][0], shapes[f"{path}.down.weight"][1]])

    terms: list[tuple[float, float, list[tuple[int, float, float]]]] = []  # params, macs, (index, scale, rest)
    for name, shape in shapes.items():
        factors: list[tuple[int, float, float]] = []
        constant = float(shape.numel())
        seen: dict[str, int] = {}
        for dim, owners in touching.get(name, {}).items():
            assert dim is None or len(owners) == 1, f"{name}: several slices of dimension {dim}"
            for axis, width in owners:
                index = number[axis.name]
                if dim is None:
                    factors.append((index, 1.0, 0.0))
                    continue
                rest = shape[dim] - width * axis.size
                constant /= shape[dim]
                if axis.name in seen:  # the axis lies on both dimensions: E K^2, not (E K)^2
                    assert rest == factors[seen[axis.name]][2] == 0, f"{name}: {axis.name} twice, with a rest"
                    scale = factors[seen[axis.name]][1]
                    factors[seen[axis.name]] = (index + len(axes), scale * width, 0.0)
                    continue
                seen[axis.name] = len(factors)
                factors.append((index, float(width), float(rest)))
        terms.append((constant, constant * positions_per_second.get(name, 0.0), factors))
    rows = {name: row for row, name in enumerate(shapes)}
    caps = [[rows[f"{path}.{part}"] for part in ("down.weight", "up.weight", "dense")] for path in pairs]
    dense = [terms[row][0] for _, _, row in caps]
    rates = [positions_per_second.get(f"{path}.up.weight", 0.0) for path in pairs]
    for _, _, row in caps:  # in a sum over terms it does not count
        terms[row] = (0.0, 0.0, terms[row][2])
    for product in products:  # of axes that are not free all members stay
        factors = [(number[name], 1.0, 0.0) for name in (product.axis, product.parent) if name in number]
        members = 1 if product.axis in number else product.members
        terms.append((0.0, product.macs_per_second * members, factors))

    whose = [(modules or {}).get(name) for name in (*shapes, *(product.axis for product in products))]
    timed = tuple(dict.fromkeys(path for path in whose if path is not None))

    most = max((len(factors) for _, _, factors in terms), default=0)
    padded = [factors + [(0, 0.0, 1.0)] * (most - len(factors)) for _, _, factors in terms]
    table = torch.tensor(padded, dtype=torch.float64).reshape(len(terms), most, 3)
    return CostModel(
        axes=tuple(axes),
        index=table[..., 0].long(),
        scale=table[..., 1],
        rest=table[..., 2],
        coefficients={
            "params": torch.tensor([term[0] for term in terms], dtype=torch.float64),
            "macs": torch.tensor([term[1] for term in terms], dtype=torch.float64),
        },
        caps=torch.tensor(caps, dtype=torch.long).reshape(len(caps), 3),
        cap_coefficients={
            "params": torch.tensor(dense, dtype=torch.float64),
            "macs": torch.tensor([size * rate for size, rate in zip(dense, rates, strict=True)], dtype=torch.float64),
        },
        modules=timed,
        module=torch.tensor([len(timed) if path is None else timed.index(path) for path in whose]),
    )
