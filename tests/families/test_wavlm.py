"""Our WavLM attention is the stock one, only fused."""

from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from diminuendo.families import family_of
from diminuendo.modules import blocked_attention, ragged_wavlm
from diminuendo.modules.ragged_wavlm import distance_biases
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


@pytest.fixture(params=["whole", "blocks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How attention is computed: whole, as it is for short clips, or in blocks, of few queries."""
    if request.param == "blocks":
        monkeypatch.setattr(ragged_wavlm, "IN_CACHE", 0)
        monkeypatch.setattr(blocked_attention, "ROWS", 7)
        monkeypatch.setattr(blocked_attention, "NUMBERS", 300)
    return str(request.param)


@pytest.mark.parametrize("style", ["base", "large"])
@pytest.mark.parametrize("padded", [False, True])
def test_training_is_that_of_the_stock_attention(style: str, padded: bool, way: str) -> None:
    model = tiny_model("wavlm", style)
    ours = family_of(model).plain(model)
    mask = (torch.arange(8000) < torch.tensor([[8000], [5000]])).long() if padded else None
    outputs = [one(audio(), attention_mask=mask).last_hidden_state for one in (model, ours)]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    for output in outputs:
        output.sin().sum().backward()
    for name, parameter in model.named_parameters():
        if "attention" in name and not name.endswith("k_proj.bias"):  # which moves all scores of a query, so nothing
            error = ours.get_parameter(name).grad - parameter.grad
            assert float(error.norm() / parameter.grad.norm()) < 1e-5, name


def inputs_of_attention(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    shapes = (*[(2, 3, 10, 4)] * 3, (2, 3, 10, 1), (3, 19))
    return tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)


def test_gradients_are_the_same_with_checkpoints(way: str) -> None:
    inputs = (*inputs_of_attention(torch.float32), None, 0.0)
    kept = ragged_wavlm.attend(*inputs)
    made_again = checkpoint(ragged_wavlm.attend, *inputs, use_reentrant=False)
    for a, b in zip(*(torch.autograd.grad(o.square().sum(), inputs[:5]) for o in (kept, made_again)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("padded", [False, True])
def test_gradients_of_blocks_are_those_of_differences(padded: bool, way: str) -> None:
    padding = torch.arange(10) < torch.tensor([[0], [4]]) if padded else None

    def attended(*inputs: torch.Tensor) -> torch.Tensor:
        return ragged_wavlm.attend(*inputs, padding, dropout=0.0)

    assert torch.autograd.gradcheck(attended, inputs_of_attention(torch.float64))


@pytest.mark.parametrize("learned", [False, True])
def test_blocks_in_half_precision_keep_their_sums_in_full(learned: bool, way: str) -> None:
    query, key, value, gate, distances = inputs_of_attention(torch.float32)
    rounded = tuple(tensor.bfloat16().float() for tensor in (query, key, value))
    expected = ragged_wavlm.attend(*rounded, gate, distances, None, dropout=0.0)
    with torch.inference_mode(not learned), torch.autocast("cpu", torch.bfloat16):
        halves = tuple(tensor.bfloat16() for tensor in rounded)
        found = ragged_wavlm.attend(*halves, gate, distances, None, dropout=0.0)
    assert found.dtype == torch.bfloat16
    assert float((found - expected).detach().norm() / expected.detach().norm()) < 1e-2


@pytest.mark.parametrize("frames", [1, 2, 90, 900])  # single distances, ranges, and beyond the largest
def test_position_biases_are_the_stock_ones(frames: int) -> None:
    stock = tiny_model("wavlm", "base").encoder.layers[0].attention
    ours = distance_biases(stock.rel_attn_embed, stock.max_distance, frames)
    assert torch.equal(ours.unfold(1, frames, 1).flip(2), stock.compute_bias(frames, frames))


def test_the_fast_version_shares_its_tensors_and_leaves_the_model_alone() -> None:
    model = tiny_model("wavlm", "large")
    kinds = [type(module) for module in model.modules()]
    fast = family_of(model).fast(model)
    assert [type(module) for module in model.modules()] == kinds
    shared = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    ours = {name: tensor.data_ptr() for name, tensor in fast.state_dict().items()}
    assert {name: place for name, place in ours.items() if not name.endswith("kept_heads")} == shared
