"""What the cost model derives from the axes equals what is counted on real models."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from conformance.test_removal import gated_and_removed
from diminuendo.families import build, build_cost_model, family_of
from diminuendo.profiling.count import count_macs_per_second, count_parameters
from diminuendo.pruning.budget import selected_cost
from diminuendo.pruning.removal import remove
from diminuendo.structure.axis import Axis, Product, Slice
from diminuendo.structure.cost import CostModel, cost_model
from diminuendo.structure.shape import shape_of
from tiny import VARIANTS, tiny_model

MIXED: list[dict[str, Any]] = [
    {"do_stable_layer_norm": True},
    {"feat_extract_norm": "layer"},
    {"conv_pos_batch_norm": True},
    {"feat_proj_layer_norm": False},
    {"num_conv_pos_embeddings": 7},
]


def random_selection(axes: tuple[Axis, ...], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    selection = {}
    for axis in axes:
        size = int(torch.randint(axis.minimum, axis.size + 1, (), generator=generator))
        if axis.parent and not selection[axis.parent].any():
            size = 0
        members = torch.randperm(axis.size, generator=generator)[:size]
        selection[axis.name] = torch.zeros(axis.size, dtype=torch.bool).index_fill(0, members, True)
    return selection


def check_open(model: Any) -> None:
    plain = family_of(model).plain(model)
    cost = build_cost_model(plain)
    everything = torch.ones(sum(axis.size for axis in cost.axes))
    counted = {"params": count_parameters(plain), "macs": count_macs_per_second(plain)}
    for kind, expected in counted.items():
        assert float(cost.expected(kind, everything)) == pytest.approx(expected, rel=1e-12)
        assert cost.total(kind) == pytest.approx(expected, rel=1e-12)


def check_removed(model: Any, seed: int) -> None:
    family = family_of(model)
    plain = family.plain(model)
    axes, cost = family.axes(plain), build_cost_model(plain)
    selection = random_selection(axes, seed)
    state = remove(axes, plain.state_dict(), selection)
    removed = build(model, shape_of(axes, selection), state)
    certain = torch.cat([selection[axis.name] for axis in axes]).float()
    counted = {"params": count_parameters(removed), "macs": count_macs_per_second(removed)}
    for kind, expected in counted.items():
        assert selected_cost(cost, kind, selection) == pytest.approx(expected, rel=1e-12)  # type: ignore[arg-type]
        assert float(cost.expected(kind, certain)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("family", "style"), VARIANTS)
def test_expected_cost_equals_true_cost_with_gates_open(family: str, style: str) -> None:
    check_open(tiny_model(family, style, ctc=True))


@pytest.mark.parametrize("kind", ["channels", "groups", "sublayer", "heads", "neurons"])
def test_axes_that_are_not_free_cost_all_of_their_members(kind: str) -> None:
    plain = family_of(tiny_model()).plain(tiny_model())
    free = [axis for axis in family_of(plain).axes(plain) if axis.kind != kind]
    names = {axis.name for axis in free}
    free = [axis if axis.parent in names else replace(axis, parent=None) for axis in free]
    whole, partly = build_cost_model(plain), build_cost_model(plain, free)
    sizes = torch.tensor([float(axis.size if axis.kind == kind else axis.minimum) for axis in whole.axes])
    of_free = torch.tensor([float(axis.minimum) for axis in free])
    for what in ("params", "macs"):
        assert float(partly.at_sizes(what, of_free)) == pytest.approx(float(whole.at_sizes(what, sizes)), rel=1e-12)


def test_a_model_that_is_being_trained_costs_as_much() -> None:
    check_open(tiny_model(layerdrop=0.999).train())  # it would skip its layers


@pytest.mark.parametrize("changes", MIXED, ids=str)
def test_expected_cost_equals_true_cost_in_mixed_styles(changes: dict[str, Any]) -> None:
    check_open(tiny_model("hubert", "base", **changes))
    check_removed(tiny_model("hubert", "base", **changes), seed=1)


@pytest.mark.parametrize("position", ["relative_key", "relative", "rotary", None])
def test_what_layers_are_told_of_positions_is_counted(position: str | None) -> None:
    check_open(tiny_model("wav2vec2-bert", position_embeddings_type=position))
    check_removed(tiny_model("wav2vec2-bert", position_embeddings_type=position), seed=1)


@pytest.mark.parametrize("changes", [{"add_adapter": True, "output_hidden_size": 24}, {"adapter_attn_dim": 6}], ids=str)
def test_adapters_are_counted_too(changes: dict[str, Any]) -> None:
    check_open(tiny_model("wav2vec2", "large", **changes))
    check_removed(tiny_model("wav2vec2", "large", **changes), seed=1)


@pytest.mark.parametrize(
    ("family", "style", "seed"),
    [
        ("hubert", "base", 0),
        ("wav2vec2", "large", 1),
        ("unispeech-sat", "large", 2),
        ("data2vec-audio", "stacked", 3),
        ("wav2vec2-conformer", "base", 0),
        ("wav2vec2-conformer", "large", 1),
    ],
)
def test_expected_cost_equals_true_cost_after_removal(family: str, style: str, seed: int) -> None:
    check_removed(tiny_model(family, style, ctc=seed == 1), seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("family", "style"), VARIANTS)
def test_expected_cost_equals_true_cost_after_any_removal(family: str, style: str, seed: int) -> None:
    check_removed(tiny_model(family, style, ctc=seed % 2 == 1), seed)


def test_the_cost_of_a_model_compressed_before_is_its_own() -> None:
    once = gated_and_removed(tiny_model("hubert", "large"), "heads", "everything that may").removed
    check_open(once)
    check_removed(gated_and_removed(tiny_model("hubert", "base"), "groups", "some").removed, seed=3)


# A made-up model with every case: `width` lies on both dimensions of `square`; `glu` owns two places in `doubled`,
# which has two more rows that belong to nobody; `inner` lies inside the sublayer `outer`.
AXES = (
    Axis("width", "channels", 3, (Slice("square", 0), Slice("square", 1), Slice("read", 1, block=2)), ()),
    Axis("glu", "neurons", 2, (Slice("doubled", 0, block=2, offsets=(0, 5)), Slice("read", 0)), ()),
    Axis("outer", "sublayer", 1, (Slice("inside", None), Slice("bias", None)), ()),
    Axis("inner", "heads", 3, (Slice("inside", 1, block=2),), (), parent="outer"),
)
SHAPES = {
    "square": torch.Size([3, 3]),
    "read": torch.Size([2, 6]),
    "doubled": torch.Size([10, 4]),
    "inside": torch.Size([5, 6]),
    "bias": torch.Size([5]),
    "fixed": torch.Size([7]),
}
POSITIONS = {"square": 3.0, "doubled": 2.0, "inside": 10.0}


def made_up() -> CostModel:
    return cost_model(AXES, SHAPES, POSITIONS, [Product("inner", 3, 100.0, "outer")])


def by_hand(members: torch.Tensor) -> dict[str, float]:
    width, glu, outer, inner = (float(part.sum()) for part in members.split([3, 2, 1, 3]))
    square, read, doubled = width * width, glu * 2 * width, (2 + 4 * glu) * 4
    inside = outer * 5 * 2 * inner
    return {
        "params": square + read + doubled + inside + outer * 5 + 7,
        "macs": 3 * square + 2 * doubled + 10 * inside + 100 * outer * inner,
    }


@pytest.mark.parametrize("kind", ["params", "macs"])
def test_expected_cost_is_the_mean_over_all_selections(kind: str) -> None:
    p = torch.rand(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = 0.0
    for bits in product([0.0, 1.0], repeat=9):
        members = torch.tensor(bits, dtype=torch.float64)
        mean += float(torch.where(members > 0, p, 1 - p).prod()) * by_hand(members)[kind]
    assert float(made_up().expected(kind, p)) == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("kind", ["params", "macs"])
@pytest.mark.parametrize("sizes", [(3, 2, 1, 3), (1, 0, 1, 2), (2, 1, 0, 3), (0, 0, 0, 0)])
def test_cost_at_sizes_is_counted_by_hand(kind: str, sizes: tuple[int, ...]) -> None:
    members = torch.cat([torch.arange(axis.size) < size for axis, size in zip(AXES, sizes, strict=True)])
    assert float(made_up().at_sizes(kind, torch.tensor(sizes))) == by_hand(members)[kind]


@pytest.mark.parametrize("kind", ["params", "macs"])
def test_the_gradient_of_the_expected_cost_equals_finite_differences(kind: str) -> None:
    p = torch.rand(9, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda probabilities: made_up().expected(kind, probabilities), p)
    assert torch.autograd.grad(made_up().expected(kind, p), p)[0].gt(0).all()


def test_two_slices_of_one_dimension_are_refused() -> None:
    twice = Axis("twice", "channels", 2, (Slice("weight", 0), Slice("weight", 0, offsets=(2,))), ())
    with pytest.raises(AssertionError, match="several slices of dimension 0"):
        cost_model([twice], {"weight": torch.Size([4])}, {}, [])
