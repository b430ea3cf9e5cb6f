"""Removing equals gating, and costs agree, whatever stays: random shapes of every family."""

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformance.test_removal import gated_and_removed
from diminuendo.structure.axis import Axis, Selection
from tiny import VARIANTS, tiny_model

SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]  # a test takes seconds, and the seed is a fixture


@st.composite
def seeds_and_variants(draw: st.DrawFn) -> tuple[str, str, bool, int]:
    family, style = draw(st.sampled_from(VARIANTS))
    return family, style, draw(st.booleans()), draw(st.integers(0, 2**31))


def random_selection(axes: tuple[Axis, ...], seed: int) -> Selection:
    """Of every axis any number that may stay, and any members; inside a sublayer that goes, none."""
    generator = torch.Generator().manual_seed(seed)
    selection = {}
    for axis in axes:
        kept = int(torch.randint(axis.minimum, axis.size + 1, (1,), generator=generator))
        if axis.kind == "sublayer":
            kept = int(torch.rand(1, generator=generator) < 0.8)
        members = torch.randperm(axis.size, generator=generator)[:kept]
        selection[axis.name] = torch.zeros(axis.size, dtype=torch.bool).index_fill(0, members, True)
    for axis in axes:
        if axis.parent is not None and not selection[axis.parent].any():
            selection[axis.name][:] = False
    return selection


def check(family: str, style: str, low_rank: bool, seed: int) -> None:
    # In double precision: a norm over two members that are nearly alike makes rounding in single precision 1e-5.
    model: Any = tiny_model(family, style).double()
    choose = partial(random_selection, seed=seed)
    gated_and_removed(model, "", "", low_rank=low_rank, choose=choose).check(1e-10)


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=SLOW)
@given(seeds_and_variants())
def test_removing_equals_gating_for_random_shapes(drawn: tuple[str, str, bool, int]) -> None:
    check(*drawn)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=SLOW)
@given(seeds_and_variants())
def test_removing_equals_gating_for_many_random_shapes(drawn: tuple[str, str, bool, int]) -> None:
    check(*drawn)
