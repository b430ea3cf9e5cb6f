"""Gates on a model: neutral at the start, learnable everywhere, drawn reproducibly."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from diminuendo.families import family_of
from diminuendo.modules.kept_norm import KeptLayerNorm
from diminuendo.pruning import gating
from diminuendo.pruning.gating import LOG_ALPHA_BOUND, Gates, attach, plain_state
from tiny import STYLES, VARIANTS, inputs_of, tiny_model


def gated(model: Any, seed: int = 0) -> tuple[Any, Any, Gates]:
    """The plain copy, a gated one, and its gates."""
    family = family_of(model)
    plain, student = family.plain(model), family.plain(model)
    gates = Gates(family.axes(student), seed=seed)
    attach(student, gates)
    return plain, student, gates


def states(model: Any) -> tuple[torch.Tensor, ...]:
    with torch.inference_mode():
        return tuple(family_of(model).hidden_states(model, inputs_of(model)))


@pytest.mark.parametrize(("family", "style"), VARIANTS)
def test_at_the_start_the_gated_model_equals_the_plain_one_exactly(family: str, style: str) -> None:
    plain, student, gates = gated(tiny_model(family, style))
    gates.evaluate()
    assert bool((gates.values == 1).all())
    assert all(torch.equal(a, b) for a, b in zip(states(plain), states(student), strict=True))


@pytest.mark.parametrize(("family", "style"), VARIANTS)
def test_gradient_reaches_the_gates_of_every_axis(family: str, style: str) -> None:
    _, student, gates = gated(tiny_model(family, style))
    with torch.no_grad():  # where no gate saturates
        gates.log_alpha.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(0))
    gates.set(torch.sigmoid(gates.log_alpha))
    sum(state.square().mean() for state in family_of(student).hidden_states(student, inputs_of(student))).backward()
    assert gates.log_alpha.grad is not None
    seen = [axis.name for axis in family_of(student).axes(family_of(student).encoder(student))]
    found = {name: gates.log_alpha.grad[gates.of(name)] for name in seen}
    # A rectifier may shut a channel for all of the input.
    assert [name for name in seen if not (found[name].any() if "subsampling" in name else found[name].all())] == []


@dataclass(frozen=True)
class Parts:
    """What a family calls the parts of a layer."""

    layers: str = "encoder.layers"
    attention: str = "attention"
    first: str = "feed_forward"
    second: str = "feed_forward"
    output: str = "output_dense"
    convolution: str | None = None


CONFORMER = Parts(attention="self_attn", first="ffn1", second="ffn2", convolution="conv_module")
FAST_CONFORMER = Parts("layers", "self_attn", "feed_forward1", "feed_forward2", "linear2", "conv")
PARTS = dict.fromkeys(STYLES, Parts()) | {
    "wav2vec2-conformer": CONFORMER,
    "wav2vec2-bert": CONFORMER,
    "parakeet": FAST_CONFORMER,
    "nemotron": FAST_CONFORMER,
}


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize(("family", "style"), VARIANTS)
def test_leaving_out_members_whose_gate_is_zero_changes_neither_states_nor_gradients(
    family: str, style: str, multiple: int, cuda: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gating, "PRESENT_MULTIPLE", multiple)
    if cuda:
        monkeypatch.setattr(Gates, "_rounded_up", lambda *_: True)
    _, student, gates = gated(tiny_model(family, style).double())
    parts = PARTS[family]
    channels = "feature_extractor.conv_layers.2.channels"
    waveforms = family_of(student).reads_waveforms
    with torch.no_grad():
        gates.log_alpha.normal_(0.0, 4.0, generator=torch.Generator().manual_seed(0))
        for axis in gates.axes:
            if axis.kind == "sublayer":
                gates.log_alpha[gates.of(axis.name)] = 8.0
        shut = [f"{parts.layers}.0.{parts.attention}.heads", f"{parts.layers}.1.{parts.second}"]
        shut += [f"{parts.layers}.1.{parts.convolution}.channels"] if parts.convolution else []
        shut += [channels] if waveforms else []
        for name in shut:
            gates.log_alpha[gates.of(name)] = -8.0
        if waveforms:
            gates.log_alpha[gates.of(channels)][3:6] = 8.0

    def states_and_gradients() -> list[torch.Tensor]:
        student.zero_grad()
        gates.zero_grad()
        width, draws = gates.of("width"), torch.Generator().manual_seed(1)
        opened = (gates.values[width] > 0)[torch.from_numpy(gates.present[width])]
        inputs = {name: value.double() for name, value in inputs_of(student).items()}
        found = [state[..., opened] for state in family_of(student).hidden_states(student, inputs)]
        sum((state * torch.randn(state.shape, generator=draws)).sum() for state in found).backward()
        learned = [*student.parameters(), gates.log_alpha]
        return [state.detach() for state in found] + [p.grad.clone() for p in learned if p.grad is not None]

    gates.sample(0)
    layers = family_of(student).encoder(student).get_submodule(parts.layers)
    last = getattr(getattr(layers[0], parts.first), parts.output)
    opened = int((gates.values[gates.of(f"{parts.layers}.0.{parts.first}.neurons")] > 0).sum())
    assert last.weight.shape[1] == -(-opened // multiple) * multiple < last.in_features
    assert getattr(getattr(layers[1], parts.second), parts.output).weight.shape[1] == 1
    if parts.convolution:
        assert len(getattr(layers[1], parts.convolution).depthwise_conv.weight) == 1
        assert 1 < len(getattr(layers[0], parts.convolution).depthwise_conv.weight) < 32
    if waveforms:
        width = len(student.feature_extractor.conv_layers[2].conv.weight)
        assert width == max(3, multiple * (cuda or style == "base"))
    narrow = states_and_gradients()
    gates.sample(0)
    gates.set(gates.values)
    for got, expected in zip(narrow, states_and_gradients(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max() + 1))


def test_the_same_draw_gives_the_same_gates_and_another_draw_others() -> None:
    axes = family_of(tiny_model()).axes(tiny_model())
    one, other, reseeded = Gates(axes, seed=1), Gates(axes, seed=1), Gates(axes, seed=2)
    for gates in (one, other, reseeded):
        with torch.no_grad():
            gates.log_alpha.zero_()
    torch.manual_seed(5)
    one.sample(7)
    torch.manual_seed(6)
    other.sample(3)
    other.sample(7)
    reseeded.sample(7)
    assert torch.equal(one.values, other.values)
    assert not torch.equal(one.values, reseeded.values)
    other.sample(8)
    assert not torch.equal(one.values, other.values)


def test_sampling_takes_nothing_from_the_global_generator() -> None:
    gates = Gates(family_of(tiny_model()).axes(tiny_model()))
    before = torch.get_rng_state()
    gates.sample(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_state_of_a_gated_model_does_not_contain_the_gates() -> None:
    plain, student, gates = gated(tiny_model("hubert", "large"))
    inside = [name for name, _ in student.named_parameters() if "log_alpha" in name]
    assert inside == []
    assert [name for name in student.state_dict() if "log_alpha" in name or "owner" in name] == []
    both = nn.ModuleDict({"student": student, "gates": gates})
    assert [name for name in both.state_dict() if "log_alpha" in name] == ["gates.log_alpha"]
    assert sum(p.numel() for p in student.parameters()) == sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize("style", ["base", "large"])
def test_the_plain_state_of_a_model_with_open_gates_is_that_of_the_plain_model(style: str) -> None:
    plain, student, gates = gated(tiny_model("hubert", style))
    gates.evaluate()
    expected, got = plain.state_dict(), plain_state(student)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_a_selection_opens_exactly_its_members() -> None:
    gates = Gates(family_of(tiny_model()).axes(tiny_model()))
    with torch.no_grad():
        gates.log_alpha.fill_(-8.0)  # shut, so that only the selection can open
    selection = {axis.name: torch.arange(axis.size) % 2 == 0 for axis in gates.axes}
    gates.evaluate(selection)
    assert all(torch.equal(gates.is_open(name), members) for name, members in selection.items())


def test_selected_members_keep_their_gate_but_at_least_the_floor() -> None:
    gates = Gates(family_of(tiny_model()).axes(tiny_model()))
    with torch.no_grad():
        gates.log_alpha.zero_()
        gates.log_alpha[0] = -8.0
    gates.evaluate({axis.name: torch.ones(axis.size, dtype=torch.bool) for axis in gates.axes})
    assert gates.values[0].item() == pytest.approx(0.01)
    torch.testing.assert_close(gates.values[1:], torch.full_like(gates.values[1:], 0.5))


def test_a_kind_of_axis_may_start_elsewhere() -> None:
    gates = Gates(family_of(tiny_model()).axes(tiny_model()), drop_rate=0.01, drop_rates={"neurons": 0.5})
    for axis in gates.axes:
        start = float(gates.log_alpha.detach()[gates.of(axis.name)].mean())
        assert start == pytest.approx(0.0 if axis.kind == "neurons" else math.log(99), abs=0.05)


def test_log_alpha_stays_within_reach() -> None:
    gates = Gates(family_of(tiny_model()).axes(tiny_model()))
    with torch.no_grad():
        gates.log_alpha[0], gates.log_alpha[1] = 100.0, -100.0
    gates.clamp()
    assert gates.log_alpha[:2].tolist() == [LOG_ALPHA_BOUND, -LOG_ALPHA_BOUND]


@pytest.fixture
def norm() -> nn.LayerNorm:
    norm = nn.LayerNorm(6, eps=1e-3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gated_norm_with_everything_open_equals_the_stock_norm_bit_for_bit(
    norm: nn.LayerNorm, dtype: torch.dtype
) -> None:
    kept = KeptLayerNorm(norm, lambda: torch.ones(6, dtype=torch.bool))
    hidden = torch.randn(2, 5, 6).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        assert torch.equal(kept(hidden), norm(hidden))


def test_a_gated_norm_equals_the_norm_of_the_kept_members(norm: nn.LayerNorm) -> None:
    members = torch.tensor([True, False, True, True, False, True])
    hidden = torch.randn(2, 5, 6)
    smaller = nn.LayerNorm(4, eps=1e-3)
    smaller.weight, smaller.bias = nn.Parameter(norm.weight[members]), nn.Parameter(norm.bias[members])
    got = KeptLayerNorm(norm, lambda: members)(hidden)
    torch.testing.assert_close(got[..., members], smaller(hidden[..., members]), rtol=1e-5, atol=1e-6)
    assert not got[..., ~members].any()


def test_a_gated_norm_without_a_bias_equals_that_of_the_kept_members() -> None:
    members = torch.tensor([True, False, True, True, False, True])
    hidden, norm = torch.randn(2, 5, 6), nn.LayerNorm(6, bias=False)
    nn.init.normal_(norm.weight)
    smaller = nn.LayerNorm(4, bias=False)
    smaller.weight = nn.Parameter(norm.weight[members])
    got = KeptLayerNorm(norm, lambda: members)(hidden)
    torch.testing.assert_close(got[..., members], smaller(hidden[..., members]), rtol=1e-5, atol=1e-6)


def test_members_of_several_entries_open_them_all() -> None:
    gates = Gates(family_of(tiny_model()).axes(tiny_model()))
    gates.set((torch.arange(len(gates.values)) % 2).float())
    assert gates.is_open("encoder.pos_conv_embed.groups", 2).tolist() == 2 * [False, False, True, True]


def test_a_gated_norm_in_bf16_takes_its_statistics_in_fp32(norm: nn.LayerNorm) -> None:
    members = torch.arange(6) < 4
    hidden = (100 + torch.randn(2, 5, 6)).bfloat16()
    kept = KeptLayerNorm(norm, lambda: members)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = kept(hidden)
    assert got.dtype == norm(hidden).dtype == torch.bfloat16
    assert torch.equal(got, kept(hidden.float()).bfloat16())


def test_a_draw_that_shuts_every_gate_of_a_norm_gives_zeros_and_finite_gradients(norm: nn.LayerNorm) -> None:
    hidden = torch.randn(2, 5, 6, requires_grad=True)
    out = KeptLayerNorm(norm, lambda: torch.zeros(6, dtype=torch.bool))(hidden)
    out.sum().backward()
    assert not out.any()
    assert hidden.grad is not None
    assert bool(hidden.grad.isfinite().all())
