"""Importance by chance, by layers, and to first order."""

import pytest
import torch

from diminuendo.families import family_of
from diminuendo.importance import at_random, taylor, whole_layers
from diminuendo.importance.taylor import DIRECTIONS
from diminuendo.training.removing import free_axes
from tiny import audio, tiny_model


def test_chance_orders_members_by_its_seed_alone() -> None:
    axes = family_of(tiny_model()).axes(tiny_model())
    one, again, other = (at_random(axes, seed) for seed in (1, 1, 2))
    neurons = "encoder.layers.1.feed_forward.neurons"
    assert torch.equal(one[neurons], again[neurons])
    assert not torch.equal(one[neurons], other[neurons])
    assert sorted(one[neurons].tolist()) == pytest.approx([(i + 1) / 40 for i in range(40)])
    assert one["encoder.layers.1.feed_forward"].tolist() == [torch.inf]


def test_every_other_layer_goes_first_from_the_top() -> None:
    model = tiny_model(num_hidden_layers=5)
    kinds = {"channels", "heads", "neurons", "groups", "width"}
    scores = whole_layers(free_axes(model, kinds))
    layers = [scores[f"encoder.layers.{i}.attention"].item() for i in range(5)]
    assert sorted(range(5), key=lambda layer: layers[layer]) == [4, 2, 0, 3, 1]
    assert [scores[f"encoder.layers.{i}.feed_forward"].item() for i in range(5)] == layers


def test_taylor_finds_the_member_that_does_nothing_and_the_one_that_does_most() -> None:
    model = family_of(tiny_model()).plain(tiny_model())
    layer = model.encoder.layers[2].feed_forward
    with torch.no_grad():
        layer.output_dense.weight[:, 3] = 0.0
        layer.output_dense.weight[:, 17] *= 100.0
        layer.intermediate_dense.weight[5] = layer.intermediate_dense.weight[5] * 0.0 - 0.0
        layer.intermediate_dense.bias[5] = 0.0  # gelu(0) = 0: large weights that read it change nothing
        layer.output_dense.weight[:, 5] = 1e3
    axes = family_of(model).axes(model)
    waveforms = audio()

    def states() -> list[torch.Tensor]:
        return [state.flatten(0, 1) for state in family_of(model).hidden_states(model, {"input_values": waveforms})]

    scores = taylor(axes, model, [states, states])["encoder.layers.2.feed_forward.neurons"]
    assert {int(member) for member in scores.argsort()[:2]} == {3, 5}
    assert int(scores.argmax()) == 17


def test_the_gradient_is_that_of_the_gate() -> None:
    """Against finite differences of what is projected: the score is the sum of (d/dz r . h / |h|)^2 over directions."""
    model = family_of(tiny_model()).plain(tiny_model()).double()
    axes = [axis for axis in family_of(model).axes(model) if axis.name == "encoder.layers.0.attention.heads"]
    waveforms = audio().double()

    def state() -> torch.Tensor:
        hidden: torch.Tensor = family_of(model).hidden_states(model, {"input_values": waveforms})[-1].flatten(0, 1)
        return hidden

    found = taylor(axes, model, [lambda: [state()]])["encoder.layers.0.attention.heads"]
    base = state().detach()
    generator = torch.Generator().manual_seed(0)
    directions = torch.stack([torch.randn(base.shape, generator=generator) for _ in range(DIRECTIONS)]) / base.norm()
    weight, differences = model.encoder.layers[0].attention.out_proj.weight, []
    for head in range(4):
        with torch.no_grad():
            weight[:, 8 * head : 8 * head + 8] *= 1 + 1e-6
            differences.append(float((directions * (state() - base)).sum((1, 2)).square().sum()))
            weight[:, 8 * head : 8 * head + 8] /= 1 + 1e-6
    assert found.argsort().tolist() == torch.tensor(differences).argsort().tolist()


def test_of_losses_the_gradient_is_squared_clip_by_clip() -> None:
    """Two clips whose gradients cancel in the sum are not nothing, nor is a clip of no loss more than others."""
    model = family_of(tiny_model()).plain(tiny_model()).double()
    axes = [axis for axis in family_of(model).axes(model) if axis.name == "encoder.layers.0.attention.heads"]
    waveforms = audio().double()

    def loss(sign: float) -> list[torch.Tensor]:
        hidden = family_of(model).hidden_states(model, {"input_values": waveforms})[-1]
        return [(1.0 + sign) * 0.5 + sign * (hidden[..., 0] - hidden[..., 0].detach()).sum()]

    weight = model.encoder.layers[0].attention.out_proj.weight
    (gradient,) = torch.autograd.grad(loss(1.0), weight.requires_grad_(True))
    by_head = (weight.detach() * gradient).view(len(weight), 4, 8).sum((0, 2))
    found = taylor(axes, model, [lambda: loss(1.0), lambda: loss(-1.0)])["encoder.layers.0.attention.heads"]
    assert found.argsort().tolist() == by_head.abs().argsort().tolist()
