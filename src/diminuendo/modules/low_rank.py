"""A matrix as the product of two smaller ones."""

import torch
from torch import Tensor, nn


class LowRank(nn.Module):
    """A linear layer, or a convolution of one frame, of a lower rank: `up` reads what `down` writes."""

    down: nn.Linear | nn.Conv1d
    up: nn.Linear | nn.Conv1d

    def __init__(self, dense: nn.Linear | nn.Conv1d, rank: int) -> None:
        super().__init__()
        has_bias = dense.bias is not None
        if isinstance(dense, nn.Linear):
            self.down = nn.Linear(dense.in_features, rank, bias=False)
            self.up = nn.Linear(rank, dense.out_features, bias=has_bias)
        else:
            self.down = nn.Conv1d(dense.in_channels, rank, 1, bias=False)
            self.up = nn.Conv1d(rank, dense.out_channels, 1, bias=has_bias)

    @property
    def rank(self) -> int:
        return len(self.down.weight)

    @property
    def weight(self) -> Tensor:
        """The matrix that both are, [out, in] or [out, in, 1]."""
        product = self.up.weight.flatten(1) @ self.down.weight.flatten(1)
        return product.reshape(*product.shape, *[1] * (self.up.weight.dim() - 2))

    @property
    def bias(self) -> Tensor | None:
        return self.up.bias

    @property
    def in_features(self) -> int:
        return self.down.weight.shape[1]

    @property
    def out_features(self) -> int:
        return len(self.up.weight)

    in_channels, out_channels = in_features, out_features

    def forward(self, hidden: Tensor) -> Tensor:
        return self.up(self.down(hidden))  # type: ignore[no-any-return]


def can_be_factored(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv1d):
        return module.kernel_size == module.stride == (1,) and module.groups == 1
    return isinstance(module, nn.Linear)


@torch.no_grad()
def factored(dense: nn.Linear | nn.Conv1d) -> LowRank:
    """The same map at full rank: W = P Q, P = U sqrt(S) and Q = sqrt(S) V' of its singular value decomposition."""
    weight = dense.weight.detach()
    left, values, right = torch.linalg.svd(weight.flatten(1).double(), full_matrices=False)
    with torch.device("meta"):
        made = LowRank(dense, len(values))
    root, tail = values.sqrt(), [1] * (weight.dim() - 2)
    state = {
        "down.weight": (root[:, None] * right).to(weight.dtype).reshape(len(values), -1, *tail),
        "up.weight": (left * root).to(weight.dtype).reshape(-1, len(values), *tail),
    }
    if dense.bias is not None:
        state["up.bias"] = dense.bias.detach()
    made.load_state_dict(state, assign=True)
    return made
