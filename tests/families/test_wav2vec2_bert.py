"""Our attention with positions "relative_key" is the stock one, only with fewer products."""

from typing import Any

import pytest
import torch

from diminuendo.families import family_of
from tiny import tiny_model


def inputs(padded: bool) -> dict[str, torch.Tensor]:
    features = torch.randn(2, 40, 160, generator=torch.Generator().manual_seed(0))  # farther than the distances reach
    lengths = torch.tensor([[40], [23 if padded else 40]])
    return {"input_features": features, "attention_mask": (torch.arange(40) < lengths).long()}


def trained(model: Any, padded: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    output = model(**inputs(padded)).last_hidden_state[:, :23]
    output.sin().sum().backward()
    return output, {name: parameter.grad for name, parameter in model.named_parameters() if "self_attn" in name}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_training_is_that_of_the_stock_attention(padded: bool, kind: str) -> None:
    model = tiny_model("wav2vec2-bert", "base")
    model.set_attn_implementation(kind)
    ours = family_of(model).plain(model)
    (expected, gradients), (found, of_ours) = trained(model, padded), trained(ours, padded)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        if not name.endswith("linear_k.bias"):  # which moves all scores of a query, so nothing
            assert float((of_ours[name] - gradient).norm() / gradient.norm()) < 1e-5, name


def test_the_fast_version_shares_its_tensors_and_leaves_the_model_alone() -> None:
    model = tiny_model("wav2vec2-bert", "base")
    kinds = [type(module) for module in model.modules()]
    fast = family_of(model).fast(model)
    assert [type(module) for module in model.modules()] == kinds
    assert type(fast.encoder.layers[0].self_attn) is not type(model.encoder.layers[0].self_attn)
    assert {n: t.data_ptr() for n, t in fast.state_dict().items()} == {
        n: t.data_ptr() for n, t in model.state_dict().items()
    }
    with torch.inference_mode():
        outputs = [one(**inputs(padded=True)).last_hidden_state[:, :23] for one in (fast, model)]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
