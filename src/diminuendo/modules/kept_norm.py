"""Norms and depthwise convolutions of channels of which some are gone."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class KeptLayerNorm(nn.LayerNorm):
    """LayerNorm over the kept entries of the last dimension; the entries that are gone come out as zero.

    Used while members are gated: it equals the ordinary norm of the model in which the gone members are removed.
    `kept` gives a mask of the entries that there are, [dim], on the CPU; what is False in it is there but gone.
    """

    def __init__(self, norm: nn.LayerNorm, kept: Callable[[], Tensor]) -> None:
        super().__init__(norm.normalized_shape, norm.eps, norm.elementwise_affine, norm.bias is not None)
        self.weight, self.bias = norm.weight, norm.bias
        self.kept = kept

    def forward(self, hidden: Tensor) -> Tensor:
        kept = self.kept()
        if bool(kept.all()):
            return F.layer_norm(hidden, kept.shape, self.weight, self.bias, self.eps)
        with torch.autocast(hidden.device.type, enabled=False):  # as for the ordinary norm: statistics in fp32
            precise = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
            mask = kept.to(precise)
            count = mask.sum().clamp(min=1)  # a draw may shut every gate
            mean = (precise * mask).sum(-1, keepdim=True) / count
            centred = (precise - mean) * mask
            variance = centred.square().sum(-1, keepdim=True) / count
            normed = centred * torch.rsqrt(variance + self.eps)
            if self.elementwise_affine:
                normed = normed * self.weight
            if self.bias is not None:
                normed = normed + self.bias * mask
        # As the ordinary norm, which under CUDA's autocast gives fp32.
        return normed if hidden.is_cuda and torch.is_autocast_enabled("cuda") else normed.to(hidden.dtype)


class KeptGroupNorm(nn.GroupNorm):
    """GroupNorm with a group for every channel, however many there are at the moment."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        assert norm.num_groups == norm.num_channels
        super().__init__(norm.num_groups, norm.num_channels, norm.eps, norm.affine)
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, hidden: Tensor) -> Tensor:
        return F.group_norm(hidden, hidden.shape[1], self.weight, self.bias, self.eps)
