"""Data2Vec's positional convolutions: their gates are not undone by the norms behind them."""

from typing import Any

import pytest
import torch

from diminuendo.families import family_of
from diminuendo.pruning.gating import Gates, attach
from tiny import tiny_model

GROUPS = "encoder.pos_conv_embed.groups"


@pytest.fixture
def gated() -> tuple[Any, Gates, slice]:
    """The positional convolutions, all gates, and where those of the groups are."""
    model = tiny_model("data2vec-audio", "stacked")
    student = family_of(model).plain(model)
    gates = Gates(family_of(student).axes(student))
    attach(student, gates)
    return student.encoder.pos_conv_embed, gates, gates.of(GROUPS)


def written(stack: Any, gates: Gates, groups: slice, values: list[float]) -> torch.Tensor:
    """[batch, frames, groups, channels of a group]"""
    gates.set(
        torch.ones_like(gates.values).index_copy(0, torch.arange(groups.start, groups.stop), torch.tensor(values))
    )
    with torch.inference_mode():
        hidden = torch.randn(2, 20, 32, generator=torch.Generator().manual_seed(0))
        result: torch.Tensor = stack(hidden).unflatten(2, (4, 8))
    return result


def test_groups_that_are_nearly_shut_write_nearly_nothing(gated: Any) -> None:
    whole, faint = (written(*gated, [value] * 4) for value in (1.0, 0.01))
    assert 0 < faint.norm() < 0.02 * whole.norm()


def test_the_gate_of_a_group_leaves_the_others_alone_until_it_is_shut(gated: Any) -> None:
    whole, faint, shut = (written(*gated, [1.0, value, 1.0, 1.0]) for value in (1.0, 0.01, 0.0))
    others = [0, 2, 3]
    assert torch.equal(faint[:, :, others], whole[:, :, others])
    assert faint[:, :, 1].norm() < 0.02 * whole[:, :, 1].norm()
    assert not shut[:, :, 1].any()
    assert not torch.allclose(shut[:, :, others], whole[:, :, others])  # the norms run over three groups
