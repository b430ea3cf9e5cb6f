"""Hard concrete gates (Louizos et al. 2018, arXiv 1712.01312; constants as in DPHuBERT, arXiv 2305.17651).

u ~ U(0, 1); x = sigmoid((logit u + log_alpha) / beta); z = clamp(1.2 x - 0.1, 0, 1).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

BETA = 2.0 / 3.0
LOWER, UPPER = -0.1, 1.1
_EPSILON = 1e-6
# P(z > 0) = P(x > 1/12) = sigmoid(log_alpha - beta logit(1/12)), and logit(1/12) = -ln 11.
_OPEN_SHIFT = BETA * math.log(-UPPER / LOWER)


def log_alpha_of_drop_rate(drop_rate: float) -> float:
    """The log_alpha of DPHuBERT's start, log((1 - d) / d)."""
    return math.log((1.0 - drop_rate) / drop_rate)


def open_probability(log_alpha: Float[Tensor, " members"]) -> Float[Tensor, " members"]:
    """P(z > 0), the differentiable expectation behind L0 regularisation."""
    return torch.sigmoid(log_alpha + _OPEN_SHIFT)


def _stretch(x: Float[Tensor, " members"]) -> Float[Tensor, " members"]:
    return ((UPPER - LOWER) * x + LOWER).clamp(0.0, 1.0)


def sample(log_alpha: Float[Tensor, " members"], uniform: Float[Tensor, " members"]) -> Float[Tensor, " members"]:
    """Gates in [0, 1] from uniform noise in [0, 1); differentiable in log_alpha."""
    noise = torch.logit(uniform.clamp(_EPSILON, 1.0 - _EPSILON))
    return _stretch(torch.sigmoid((noise + log_alpha) / BETA))


def evaluation_gate(log_alpha: Float[Tensor, " members"]) -> Float[Tensor, " members"]:
    """The gate without noise: exactly 1 from log_alpha = 1.5986 up, exactly 0 from -1.5986 down."""
    return _stretch(torch.sigmoid(log_alpha / BETA))
