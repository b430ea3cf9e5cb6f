"""Importance by the size of weights."""

import pytest
import torch

from diminuendo.families import family_of
from diminuendo.importance import magnitude
from tiny import VARIANTS, tiny_model


@pytest.mark.parametrize(("family", "style"), VARIANTS)
def test_scores_compare_members_within_their_axis_by_all_that_goes_with_them(family: str, style: str) -> None:
    model = family_of(tiny_model(family, style)).plain(tiny_model(family, style))
    axes = {axis.name: axis for axis in family_of(model).axes(model)}
    scores = magnitude(tuple(axes.values()), model.state_dict())
    assert scores.keys() == axes.keys()
    for name, axis in axes.items():
        if axis.kind == "sublayer":
            assert scores[name].tolist() == [torch.inf]
        else:
            assert scores[name].sort().values.tolist() == pytest.approx([(i + 1) / axis.size for i in range(axis.size)])
    neurons = next(axis for axis in axes.values() if axis.kind == "neurons")
    places = (neurons.slices[0], neurons.gates[0])
    first, second = (model.get_submodule(piece.parameter.rpartition(".")[0]) for piece in places)
    members = [
        torch.cat([first.weight[i], first.bias[i : i + 1]]).abs().sum() + second.weight[:, i].abs().sum()
        for i in range(40)
    ]
    expected = torch.stack(members)
    found = scores[neurons.name]
    assert found.argsort().tolist() == expected.argsort().tolist()


def test_a_head_counts_with_all_four_projections() -> None:
    model = family_of(tiny_model()).plain(tiny_model())
    axes = family_of(model).axes(model)
    with torch.no_grad():
        model.encoder.layers[0].attention.k_proj.weight[8:16] += 100.0
    assert magnitude(axes, model.state_dict())["encoder.layers.0.attention.heads"].argmax().item() == 1


def test_running_statistics_of_a_batch_norm_do_not_count() -> None:
    model = family_of(tiny_model()).plain(tiny_model(conv_pos_batch_norm=True))
    axes, state = family_of(model).axes(model), model.state_dict()
    scores = magnitude(axes, state)["encoder.pos_conv_embed.groups"]
    width = 32 // 4
    start = width * scores.argmin().item()
    state["encoder.pos_conv_embed.batch_norm.running_var"][start : start + width] += 1e6
    assert torch.equal(magnitude(axes, state)["encoder.pos_conv_embed.groups"], scores)
