"""Positional convolutions in training: the same values and gradients, by other kernels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diminuendo.families import family_of
from diminuendo.training.grouped_conv import by_fourier_transforms, grouped_convolution
from diminuendo.training.kernels import choose_convolution, convolution_chosen
from tiny import TRANSFORMER_VARIANTS, audio, tiny_model

WAYS = (grouped_convolution, by_fourier_transforms)
DEVICES = ("cpu", *(("cuda",) if torch.cuda.is_available() else ()))


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize(("channels", "out", "groups", "taps", "frames"), [(12, 12, 3, 128, 49), (8, 4, 2, 5, 1)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("device", DEVICES)
def test_values_and_gradients_are_those_of_torch(
    by: Callable[..., Tensor], channels: int, out: int, groups: int, taps: int, frames: int, bias: bool, device: str
) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(3, channels, frames), torch.randn(out, channels // groups, taps)]
    inputs += [torch.randn(out)] if bias else []
    padding = taps // 2

    def made(function: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        given = [value.to(device, dtype).requires_grad_() for value in inputs]
        got = function(*given, *[None] * (3 - len(given)), padding=padding, groups=groups)
        weights = torch.randn(got.shape, generator=torch.Generator().manual_seed(1))
        (got * weights.to(device, dtype)).sum().backward()
        return [got.detach().float().cpu(), *(value.grad.float().cpu() for value in given if value.grad is not None)]

    expected = made(F.conv1d, torch.float64)
    for got, wanted in zip(made(by, torch.float32), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("by", WAYS)
def test_under_autocast_the_result_is_in_its_type_and_as_near(by: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(2, 12, 50), torch.randn(12, 4, 16) / 8, torch.randn(12)
    exact = F.conv1d(hidden, weight, bias, padding=8, groups=3)
    with torch.autocast("cpu", torch.bfloat16):
        got = by(hidden, weight, bias, padding=8, groups=3)
        stock = F.conv1d(hidden, weight, bias, padding=8, groups=3)
    assert got.dtype == stock.dtype == torch.bfloat16
    assert (got.float() - exact).norm() < 1.1 * (stock.float() - exact).norm()


@pytest.mark.parametrize(("family", "style"), TRANSFORMER_VARIANTS)
def test_a_model_computes_the_same_and_is_left_as_it_was(
    family: str, style: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def noted(*given: Any, **settings: Any) -> Tensor:
        calls.append(settings)
        return grouped_convolution(*given, **settings)

    monkeypatch.setattr("diminuendo.training.kernels.grouped_convolution", noted)
    model = tiny_model(family, style)
    names = model.state_dict().keys()

    def states() -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return tuple(family_of(model).hidden_states(model, {"input_values": audio()}))

    stock = states()
    layers = getattr(family_of(model).encoder(model).encoder.pos_conv_embed, "layers", [None])
    with convolution_chosen(model):
        with convolution_chosen(model):
            pass
        chosen = states()
    assert len(calls) == len(layers)
    for got, wanted in zip(chosen, stock, strict=True):
        torch.testing.assert_close(got, wanted)
    assert all(torch.equal(a, b) for a, b in zip(states(), stock, strict=True))
    assert len(calls) == len(layers)
    assert model.state_dict().keys() == names


def test_other_convolutions_stay_as_they_are() -> None:
    others = nn.Sequential(
        nn.Conv1d(8, 8, 3, groups=8), nn.Conv1d(8, 8, 3), nn.Conv1d(8, 8, 3, groups=2, stride=2), nn.Conv2d(4, 4, 3)
    )
    assert choose_convolution(others) == []
