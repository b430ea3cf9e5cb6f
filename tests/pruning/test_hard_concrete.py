"""Hard concrete gates: what is computed in closed form is what sampling gives."""

import pytest
import torch

from diminuendo.pruning import hard_concrete as hc


@pytest.mark.parametrize("log_alpha", [-4.0, -1.5986, 0.0, 1.0, 4.5951])
def test_gate_open_probability_matches_sampling(log_alpha: float) -> None:
    n = 200_000
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(0))
    gates = hc.sample(torch.full((n,), log_alpha), uniform)
    p = float(hc.open_probability(torch.tensor(log_alpha)))
    assert abs(float((gates > 0).float().mean()) - p) < 4 * (p * (1 - p) / n) ** 0.5


def test_the_open_probability_at_zero_is_the_published_one() -> None:
    # sigmoid((2 / 3) ln 11), ln 11 = 2.3979
    assert float(hc.open_probability(torch.tensor(0.0))) == pytest.approx(1 / (1 + 11 ** (-2 / 3)), abs=1e-6)


def test_the_samples_are_the_published_formula() -> None:
    uniform = torch.rand(1000, generator=torch.Generator().manual_seed(1)).clamp(1e-6, 1 - 1e-6)
    log_alpha = torch.linspace(-3, 3, 1000)
    x = 1 / (1 + torch.exp(-((uniform / (1 - uniform)).log() + log_alpha) / (2 / 3)))
    torch.testing.assert_close(hc.sample(log_alpha, uniform), (1.2 * x - 0.1).clamp(0, 1), rtol=0, atol=2e-6)


def test_the_extremes_of_the_noise_give_finite_gates() -> None:
    assert hc.sample(torch.zeros(2), torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("log_alpha", "gate"), [(hc.log_alpha_of_drop_rate(0.01), 1.0), (8.0, 1.0), (1.5987, 1.0), (-1.5987, 0.0), (-8, 0)]
)
def test_evaluation_gates_are_exactly_open_or_shut_beyond_the_bounds(log_alpha: float, gate: float) -> None:
    assert float(hc.evaluation_gate(torch.tensor(log_alpha))) == gate


@pytest.mark.parametrize("log_alpha", [-1.59, -1.0, 0.0, 1.0, 1.59])
def test_evaluation_gates_are_soft_between_the_bounds(log_alpha: float) -> None:
    gate = float(hc.evaluation_gate(torch.tensor(log_alpha)))
    assert 0 < gate < 1
    assert gate == pytest.approx(1.2 / (1 + torch.tensor(-1.5 * log_alpha).exp().item()) - 0.1, abs=1e-6)


def test_the_start_drops_at_the_published_rate_before_stretching() -> None:
    # The unstretched concrete variable is above 1/2 with probability 1 - d.
    assert torch.sigmoid(torch.tensor(hc.log_alpha_of_drop_rate(0.01))) == pytest.approx(0.99, abs=1e-6)


def test_gradient_flows_through_samples_and_probabilities() -> None:
    log_alpha = torch.zeros(3, requires_grad=True)
    uniform = torch.tensor([0.4, 0.5, 0.6])
    assert torch.autograd.grad(hc.sample(log_alpha, uniform).sum(), log_alpha)[0].gt(0).all()
    assert torch.autograd.grad(hc.open_probability(log_alpha).sum(), log_alpha)[0].gt(0).all()
    double = torch.tensor([-0.3, 0.2, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: hc.sample(value, uniform.double()), double)
