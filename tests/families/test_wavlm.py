"""Our WavLM attention is the stock one, only fused."""

from typing import Any

import pytest
import torch

from diminuendo.families import family_of
from diminuendo.modules.ragged_wavlm import position_bias
from tiny import audio, tiny_model


def states(model: Any, **changes: torch.Tensor) -> tuple[torch.Tensor, ...]:
    inputs = {"input_values": audio(), **changes}
    with torch.inference_mode():
        return family_of(model).hidden_states(model, inputs)


@pytest.mark.parametrize("style", ["base", "large"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("version", ["plain", "fast"])
def test_our_attention_equals_the_stock_one(style: str, padded: bool, version: str) -> None:
    model = tiny_model("wavlm", style)
    ours = getattr(family_of(model), version)(model)
    valid = torch.arange(8000) < torch.tensor([[8000], [5000]])
    inputs = {"attention_mask": valid.long()} if padded else {}
    frames = family_of(model).frame_lengths(model, valid.sum(1) if padded else torch.tensor([8000, 8000]))
    for a, b in zip(states(ours, **inputs), states(model, **inputs), strict=True):
        heard = torch.arange(a.shape[1]) < frames[:, None]
        assert float((a - b)[heard].norm() / b[heard].norm()) < 1e-5


def test_gradients_are_those_of_the_stock_attention() -> None:
    model = tiny_model("wavlm", "base")
    ours = family_of(model).plain(model)
    for one in (model, ours):
        one(audio()).last_hidden_state.square().mean().backward()
    table = "encoder.layers.0.attention.rel_attn_embed.weight"
    for name in (
        table,
        "encoder.layers.1.attention.gru_rel_pos_linear.weight",
        "encoder.layers.0.attention.k_proj.weight",
    ):
        torch.testing.assert_close(ours.get_parameter(name).grad, model.get_parameter(name).grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("frames", [1, 2, 90, 900])  # single distances, ranges, and beyond the largest
def test_position_biases_are_the_stock_ones(frames: int) -> None:
    stock = tiny_model("wavlm", "base").encoder.layers[0].attention
    ours = position_bias(stock.rel_attn_embed, stock.max_distance, frames)
    assert torch.equal(ours, stock.compute_bias(frames, frames))


def test_the_fast_version_shares_its_tensors_and_leaves_the_model_alone() -> None:
    model = tiny_model("wavlm", "large")
    kinds = [type(module) for module in model.modules()]
    fast = family_of(model).fast(model)
    assert [type(module) for module in model.modules()] == kinds
    shared = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    ours = {name: tensor.data_ptr() for name, tensor in fast.state_dict().items()}
    assert {name: place for name, place in ours.items() if not name.endswith("kept_heads")} == shared
