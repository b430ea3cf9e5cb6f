"""Latency from a table: interpolation, gradients, whose time is whose."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from diminuendo.families import build_cost_model, family_of
from diminuendo.families.transducer import rates
from diminuendo.structure.latency import Curve, LatencyTable, curve_through, interpolated
from made_up import made_up
from tiny import VARIANTS, tiny_model

TABLE = LatencyTable(
    total_ms=20.0,
    threads=1,
    device="cpu",
    seconds=10.0,
    curves=(Curve(("a", "b"), (10.0, 20.0), (4.0, 5.0)), Curve(("c",), (5.0,), (2.0,))),
    rest=Curve((), (10.0, 50.0), (1.0, 3.0)),
)


@pytest.mark.parametrize(
    ("macs", "ms"),
    [
        ([10.0, 20.0, 5.0, 50.0], [4.0, 5.0, 2.0, 3.0]),  # where it was measured
        ([15.0, 12.5, 2.5, 30.0], [4.5, 4.25, 1.0, 2.0]),  # between
        ([0.0, 5.0, 0.0, 0.0], [0.0, 2.0, 0.0, 1.0]),  # gone, and smaller than any
        ([40.0, 25.0, 20.0, 500.0], [10.0, 6.25, 8.0, 30.0]),  # larger than any
    ],
)
def test_a_curve_is_linear_between_what_was_measured(macs: list[float], ms: list[float]) -> None:
    grid = TABLE.grid(["a", "b", "c"])
    assert interpolated(grid, torch.tensor(macs, dtype=torch.float64)).tolist() == pytest.approx(ms)


def test_the_gradient_is_the_slope() -> None:
    macs = torch.tensor([5.0, 15.0, 5.0, 100.0], dtype=torch.float64, requires_grad=True)
    interpolated(TABLE.grid(["a", "b", "c"]), macs).sum().backward()
    assert macs.grad is not None
    assert macs.grad.tolist() == pytest.approx([0.4, 0.1, 0.4, 0.06])


def test_a_table_comes_back_from_json_as_it_went() -> None:
    assert LatencyTable.from_json(TABLE.to_json()) == TABLE


@pytest.mark.parametrize(
    ("points", "macs", "ms"),
    [
        ([(2.0, 5.0), (1.0, 3.0)], (1.0, 2.0), (3.0, 5.0)),
        ([(1.0, 3.0), (2.0, 5.0), (2.0, 7.0)], (1.0, 2.0), (3.0, 6.0)),  # one place
        ([(1.0, 3.0), (2.0, 2.0), (3.0, 9.0)], (1.0, 2.0, 3.0), (2.5, 2.5, 9.0)),  # falling
        ([(1.0, 4.0), (2.0, 5.0), (3.0, 0.0)], (1.0, 2.0, 3.0), (3.0, 3.0, 3.0)),  # below all before
    ],
)
def test_a_curve_never_falls(points: list[tuple[float, float]], macs: tuple[float, ...], ms: tuple[float, ...]) -> None:
    assert curve_through(["a"], points) == Curve(("a",), macs, pytest.approx(ms))


@pytest.mark.parametrize(("family", "style"), VARIANTS)
def test_timed_modules_have_all_that_runs_for_a_frame(family: str, style: str) -> None:
    model = tiny_model(family, style)
    plain = family_of(model).plain(model)
    cost = build_cost_model(plain)
    counted = float(cost.macs_by_module(cost.full_sizes).sum())
    frames = int(family_of(plain).frame_lengths(plain, torch.tensor(160_000))) / 10
    found = rates(plain, frames)  # for every label
    beside = sum(plain.get_parameter(name).numel() * rate for name, rate in found.items())
    assert counted + beside == pytest.approx(cost.total("macs"), rel=1e-9)
    layers = sum(not isinstance(plain.get_submodule(name), torch.nn.ModuleList) for name in cost.modules)
    assert layers == len(cost.modules)
    assert {axis.name for axis in cost.axes if axis.kind == "sublayer"} <= {
        name.removeprefix("encoder.") if family in ("parakeet", "nemotron") else name for name in cost.modules
    }


def timed(model: Any, **slopes: float) -> Any:
    cost = build_cost_model(family_of(model).plain(model))
    return replace(cost, table=made_up(cost, **slopes))


@pytest.mark.parametrize(("family", "style"), [("hubert", "base"), ("parakeet", "ctc")])
def test_expected_latency_is_the_exact_one_when_members_are_certain(family: str, style: str) -> None:
    cost = timed(tiny_model(family, style))
    everything = torch.ones(sum(axis.size for axis in cost.axes))
    assert float(cost.expected("latency", everything)) == pytest.approx(cost.total("latency"), rel=1e-9)
    assert cost.total("latency") == pytest.approx(cost.table.total_ms, rel=1e-9)


def test_every_gate_feels_the_latency_that_its_member_takes() -> None:
    cost = timed(tiny_model())
    open_probability = torch.full((sum(axis.size for axis in cost.axes),), 0.7, requires_grad=True)
    cost.expected("latency", open_probability).backward()
    assert open_probability.grad is not None
    assert (open_probability.grad > 0).all()


def test_a_removed_sublayer_takes_no_time() -> None:
    cost = timed(tiny_model(), fixed=0.5)
    sizes = cost.full_sizes
    names = [axis.name for axis in cost.axes]
    sizes[[names.index("encoder.layers.1.attention"), names.index("encoder.layers.1.attention.heads")]] = 0
    macs = cost.macs_by_module(cost.full_sizes)[cost.modules.index("encoder.layers.1.attention")]
    left = float(macs) * 1e-6 + 0.5
    assert float(cost.at_sizes("latency", sizes)) == pytest.approx(cost.total("latency") - left, rel=1e-9)
