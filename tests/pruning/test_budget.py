"""The budget: what is asked is understood or refused, and what is selected meets it."""

import re
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import HubertConfig, HubertModel

from diminuendo.errors import UserError
from diminuendo.families import build, build_cost_model, family_of, measure
from diminuendo.profiling.count import count_macs_per_second, count_parameters
from diminuendo.pruning.budget import (
    Budget,
    CostKind,
    Multipliers,
    check_budget,
    parse_budget,
    select,
    selected_cost,
    smallest_cost,
)
from diminuendo.pruning.removal import remove
from diminuendo.structure.axis import Axis, Selection, Slice
from diminuendo.structure.cost import CostModel, cost_model
from diminuendo.structure.shape import shape_of
from made_up import made_up
from tiny import tiny_model

KINDS: tuple[CostKind, ...] = ("params", "macs", "latency")


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("params=0.25", Budget("params", 0.25)),
        ("params=1", Budget("params", 1.0)),
        ("  macs = 3e-1 ", Budget("macs", 0.3)),
        ("params=23.5M", Budget("params", 23.5e6, absolute=True)),
        ("params=900k", Budget("params", 900e3, absolute=True)),
        ("macs=1.2G/s", Budget("macs", 1.2e9, absolute=True)),
        ("macs=1.2g", Budget("macs", 1.2e9, absolute=True)),
        ("macs=5e8/s", Budget("macs", 5e8, absolute=True)),
        ("latency=0.5", Budget("latency", 0.5)),
        ("latency=40ms", Budget("latency", 40.0, absolute=True)),
        (" latency = 0.04 s", Budget("latency", 40.0, absolute=True)),
    ],
)
def test_a_budget_is_a_kept_fraction_or_an_absolute_number(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--keep : expected a budget like params=0.25"),
        ("0.25", "--keep 0.25: expected a budget like params=0.25"),
        ("params", "--keep params: expected a budget like params=0.25"),
        ("params=a quarter", "--keep params=a quarter: expected a budget like"),
        ("params=25%", "--keep params=25%: expected a budget like"),
        ("size=0.25", "--keep size=0.25: unknown budget 'size'; known are params, macs, latency"),
        ("params=1.2.3", "--keep params=1.2.3: '1.2.3' is not a number; expected for example params=0.25"),
        ("params=1.2", "kept fraction must lie in (0, 1], got 1.2; for an absolute size write params=23.5M"),
        ("macs=1.2", "kept fraction must lie in (0, 1], got 1.2; for an absolute size write macs=1.2G/s"),
        ("params=0", "kept fraction must lie in (0, 1], got 0;"),
        ("params=-0.5", "kept fraction must lie in (0, 1], got -0.5;"),
        ("params=23500000", "kept fraction must lie in (0, 1], got 2.35e+07;"),
        ("params=0M", "--keep params=0M: an absolute size must be above 0"),
        ("params=-3M", "--keep params=-3M: an absolute size must be above 0"),
        ("latency=40", "kept fraction must lie in (0, 1], got 40; for an absolute size write latency=40ms"),
        ("latency=0ms", "--keep latency=0ms: an absolute size must be above 0"),
        ("latency=40M", "--keep latency=40M: 'M' is no unit of latency; write for example latency=40ms"),
        ("latency=40ms/s", "--keep latency=40ms/s: latency is not counted per second; write latency=40ms"),
        ("params=40ms", "--keep params=40ms: 'ms' is no unit of params; write for example params=23.5M"),
        ("params=3M/s", "--keep params=3M/s: params are not counted per second; write params=3M"),
    ],
)
def test_a_wrong_budget_is_refused_with_what_was_expected(text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as error:
        parse_budget(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["params=0.25", "params=23.5M", "params=123.4567M", "macs=1200M/s", "macs=0.3", "latency=40.5ms"]
)
def test_a_budget_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_budget(text)) == text


def test_the_multipliers_weigh_the_gap_and_its_square() -> None:
    multipliers = Multipliers()
    with torch.no_grad():
        multipliers.linear.fill_(2.0)
        multipliers.quadratic.fill_(3.0)
    assert multipliers(torch.tensor(0.5), 0.75).item() == 2.0 * -0.25 + 3.0 * 0.0625


@pytest.mark.parametrize(("removed", "two_sided", "pull"), [(0.5, False, -2.5), (0.8, False, 0.0), (0.8, True, -0.7)])
def test_nothing_pulls_once_the_target_is_met_unless_the_penalty_is_two_sided(
    removed: float, two_sided: bool, pull: float
) -> None:
    multipliers = Multipliers(two_sided=two_sided)
    with torch.no_grad():
        multipliers.linear.fill_(-1.0)
        multipliers.quadratic.fill_(3.0)
    fraction = torch.tensor(removed, requires_grad=True)
    multipliers(fraction, 0.75).backward()
    assert fraction.grad is not None
    assert fraction.grad.item() == pytest.approx(pull)
    # The linear one comes back as it went; the other goes on only while too little is removed.
    assert multipliers.linear.grad is not None
    assert multipliers.quadratic.grad is not None
    assert multipliers.linear.grad.item() == pytest.approx(removed - 0.75)
    assert (multipliers.quadratic.grad.item() == 0.0) == (removed > 0.75 and not two_sided)


@pytest.mark.parametrize(("two_sided", "after"), [(False, 0.0), (True, 0.5)])
def test_the_linear_multiplier_never_rewards_opening_unless_two_sided(two_sided: bool, after: float) -> None:
    multipliers = Multipliers(two_sided=two_sided)
    with torch.no_grad():
        multipliers.linear.fill_(0.5)
    multipliers.clamp()
    assert multipliers.linear.item() == after


@cache
def tiny_cost(style: str) -> CostModel:
    model = tiny_model("hubert", style, intermediate_size=44, conv_dim=[24] * 7)
    cost = build_cost_model(family_of(model).plain(model))
    return replace(cost, table=made_up(cost))


@cache
def base_size_cost() -> CostModel:
    """HuBERT Base's. Sizes matter, values do not: weights are whatever is in the memory, and the clip is short."""
    with torch.device("meta"):
        model = HubertModel(HubertConfig())
    plain = family_of(model).plain(model.to_empty(device="cpu").eval())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "SECONDS", 1.0)
        cost = build_cost_model(plain)
    return replace(cost, table=made_up(cost))


def random_scores(axes: tuple[Axis, ...], seed: int, spread: float) -> dict[str, torch.Tensor]:
    """Like learned log_alpha: layers differ more than members do, and many are at the bound."""
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int) -> torch.Tensor:
        return (spread * (torch.randn(1, generator=generator) + torch.randn(size, generator=generator))).clamp(-8, 8)

    return {axis.name: draw(axis.size) for axis in axes}


def step_of(axis: Axis, round_to: int) -> int:
    if not axis.is_width:
        return 1
    return 32 if axis.kind == "channels" and axis.size >= 128 and round_to > 1 else round_to


def next_sizes(cost: CostModel, selection: Selection, round_to: int) -> list[torch.Tensor]:
    """The sizes after every smallest step that is left (into a removed sublayer: with it)."""
    axes, sizes = cost.axes, torch.tensor([float(selection[axis.name].sum()) for axis in cost.axes])
    number = {axis.name: i for i, axis in enumerate(axes)}
    parents = {axis.parent for axis in axes}
    found = []
    for i, axis in enumerate(axes):
        if sizes[i] == axis.size or axis.name in parents:
            continue
        larger = sizes.clone()
        step = step_of(axis, round_to)
        larger[i] = min(axis.size, (int(sizes[i]) // step + 1) * step)
        if axis.parent is not None:
            larger[number[axis.parent]] = 1
        found.append(larger)
    return found


def check_selection(cost: CostModel, budget: Budget, total: float, scores: Any, round_to: int) -> Selection:
    selection = select(cost, budget, total, scores, round_to)
    limit, kept = budget.amount(total), selected_cost(cost, budget.kind, selection)
    assert kept <= limit * (1 + 1e-9)
    # As close as steps allow: no axis can take its next one.
    assert all(float(cost.at_sizes(budget.kind, sizes)) > limit for sizes in next_sizes(cost, selection, round_to))
    for axis in cost.axes:
        members, score = selection[axis.name], scores[axis.name]
        size = int(members.sum())
        if axis.parent is not None and not selection[axis.parent].any():
            assert size == 0
            continue
        assert size >= axis.minimum
        assert size % step_of(axis, round_to) == 0 or size == axis.size
        if 0 < size < axis.size:
            assert score[members].min() >= score[~members].max()
    return selection


@given(
    style=st.sampled_from(["base", "large"]),
    kind=st.sampled_from(KINDS),
    kept=st.floats(0.0, 1.0),
    round_to=st.sampled_from([1, 8, 16]),
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0.0, 0.01, 2.0, 20.0]),
)
@settings(deadline=None, max_examples=60, derandomize=True)
def test_selection_meets_the_budget(
    style: str, kind: CostKind, kept: float, round_to: int, seed: int, spread: float
) -> None:
    cost = tiny_cost(style)
    total = cost.total(kind)
    floor = smallest_cost(cost, kind, round_to) / total
    budget = Budget(kind, max(1e-6, floor + kept * (1 - floor)))
    check_selection(cost, budget, total, random_scores(cost.axes, seed, spread), round_to)


@pytest.mark.parametrize("round_to", [1, 8, 16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spread", [0.01, 2.0])
def test_selection_of_a_base_model_is_within_a_point_of_the_budget(
    kind: CostKind, round_to: int, spread: float
) -> None:
    cost = base_size_cost()
    total = cost.total(kind)
    selection = check_selection(cost, Budget(kind, 0.25), total, random_scores(cost.axes, 0, spread), round_to)
    assert 0.24 < selected_cost(cost, kind, selection) / total <= 0.25 * (1 + 1e-9)


@pytest.mark.parametrize("kind", ["params", "macs"])
def test_the_removed_model_has_the_size_that_was_asked(kind: CostKind) -> None:
    model = tiny_model("wav2vec2", "large")
    family = family_of(model)
    plain = family.plain(model)
    axes, cost = family.axes(plain), build_cost_model(plain)
    budget, total = Budget(kind, 0.5), cost.total(kind)
    selection = select(cost, budget, total, random_scores(axes, 1, 2.0), round_to=1)
    state = remove(axes, plain.state_dict(), selection)
    removed = build(model, shape_of(axes, selection), state)
    counted = count_parameters(removed) if kind == "params" else count_macs_per_second(removed)
    assert 0.49 < counted / total <= 0.5


@pytest.mark.parametrize("round_to", [1, 8])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("absolute", [False, True])
def test_a_budget_below_the_floor_names_the_smallest_possible_one_and_that_one_works(
    kind: CostKind, round_to: int, absolute: bool
) -> None:
    cost = tiny_cost("large")
    total = cost.total(kind)
    least = smallest_cost(cost, kind, round_to)
    asked = Budget(kind, least * 0.999, absolute=True) if absolute else Budget(kind, least / total * 0.999)
    with pytest.raises(UserError, match="the smallest possible is ") as error:
        select(cost, asked, total, random_scores(cost.axes, 0, 1.0), round_to)
    smallest = parse_budget(str(error.value).rpartition("the smallest possible is ")[2])
    assert smallest.absolute == absolute
    check_selection(cost, smallest, total, random_scores(cost.axes, 0, 1.0), round_to)


def test_an_absolute_budget_above_the_total_is_refused() -> None:
    cost = tiny_cost("base")
    with pytest.raises(UserError, match=re.escape("--keep params=3M: the model has only")):
        check_budget(cost, parse_budget("params=3M"), cost.total("params"), 8)


def test_everything_stays_when_everything_is_asked_for() -> None:
    cost = tiny_cost("base")
    for kind in KINDS:
        selection = select(cost, Budget(kind, 1.0), cost.total(kind), random_scores(cost.axes, 0, 2.0))
        assert all(bool(members.all()) for members in selection.values())


def sizes_of(selection: Selection) -> dict[str, int]:
    return {name: int(members.sum()) for name, members in selection.items()}


def test_gates_that_are_all_at_their_bound_shrink_all_axes_evenly() -> None:
    cost = base_size_cost()
    scores = {axis.name: torch.full((axis.size,), 8.0) for axis in cost.axes}
    selection = select(cost, Budget("params", 0.5), cost.total("params"), scores)
    shares = [int(selection[axis.name].sum()) / axis.size for axis in cost.axes if axis.kind in ("heads", "neurons")]
    assert max(shares) - min(shares) < 0.1


def two_sublayers() -> CostModel:
    """Two sublayers of four neurons and an output bias; a neuron costs 10, the bias 3, what is fixed 5."""
    axes: list[Axis] = []
    shapes = {"fixed": torch.Size([5])}
    for name in ("a", "b"):
        whole = (Slice(f"{name}.weight", None), Slice(f"{name}.bias", None))
        axes += [
            Axis(name, "sublayer", 1, whole, ()),
            Axis(f"{name}.neurons", "neurons", 4, (Slice(f"{name}.weight", 0),), (), parent=name),
        ]
        shapes |= {f"{name}.weight": torch.Size([4, 10]), f"{name}.bias": torch.Size([3])}
    return cost_model(axes, shapes, {}, [])


def chosen(kept: float, round_to: int = 1, **scores: list[float]) -> dict[str, int]:
    cost = two_sublayers()
    named = {name.replace("_", "."): torch.tensor(values) for name, values in scores.items()}
    return sizes_of(select(cost, Budget("params", kept, absolute=True), cost.total("params"), named, round_to))


def test_what_is_inside_a_bad_sublayer_is_worth_no_more_than_the_sublayer() -> None:
    sizes = chosen(48, a=[-5.0], a_neurons=[7.0, 7.0, 7.0, 7.0], b=[2.0], b_neurons=[1.0, 1.0, 1.0, -4.0])
    assert sizes == {"a": 0, "a.neurons": 0, "b": 1, "b.neurons": 4}


def test_members_that_come_together_are_worth_their_mean() -> None:
    sizes = chosen(31, 2, a=[9.0], a_neurons=[9.0, -9.0, -9.0, -9.0], b=[9.0], b_neurons=[1.0, 1.0, 1.0, 1.0])
    assert sizes == {"a": 1, "a.neurons": 0, "b": 1, "b.neurons": 2}


def test_a_sublayer_that_does_not_fit_as_a_whole_comes_with_its_best_members() -> None:
    sizes = chosen(71, a=[1.0], a_neurons=[2.0, 5.0, 4.0, 3.0], b=[2.0], b_neurons=[3.0, 3.0, 3.0, 3.0])
    assert sizes == {"a": 1, "a.neurons": 2, "b": 1, "b.neurons": 4}


def test_a_bad_sublayer_does_not_come_back_as_a_bare_bias() -> None:
    sizes = chosen(46, a=[-5.0], a_neurons=[-6.0] * 4, b=[2.0], b_neurons=[1.0] * 4)
    assert sizes == {"a": 0, "a.neurons": 0, "b": 1, "b.neurons": 3}


def test_a_good_sublayer_keeps_its_bias_when_everything_inside_goes() -> None:
    sizes = chosen(51, a=[3.0], a_neurons=[-6.0] * 4, b=[2.0], b_neurons=[1.0] * 4)
    assert sizes == {"a": 1, "a.neurons": 0, "b": 1, "b.neurons": 4}
