"""Convolutions over time that read zeros where a clip has ended, in encoders whose stock modules do not see to it."""

import re
from typing import Any

from torch import Tensor, nn


def mask_padding(encoder: nn.Module, convolutions: str) -> None:
    """Has some convolutions inside an encoder read zeros outside of each clip's own frames, in place.

    What lies beside a clip in a batch would reach into its last states otherwise, by a tenth of them and more. Of a
    clip alone nothing changes. encoder: one that is called with `attention_mask`, [batch, frames]. convolutions: a
    pattern of their names in it; they read [batch, channels, frames].
    """
    if hasattr(encoder, "convolutions_masked"):
        return
    encoder.convolutions_masked = convolutions  # type: ignore[assignment]
    encoder.register_forward_pre_hook(_hand_out_mask, with_kwargs=True)
    encoder.register_forward_hook(_take_mask_back, always_call=True)
    for convolution in _masked(encoder):
        convolution.register_forward_pre_hook(_zero_padding)


def _masked(encoder: Any) -> list[Any]:
    return [module for name, module in encoder.named_modules() if re.fullmatch(encoder.convolutions_masked, name)]


# Hooks know nothing but the modules that they are called with: a copied model has its own.
def _hand_out_mask(encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    for convolution in _masked(encoder):
        convolution.own_frames = mask


def _take_mask_back(encoder: nn.Module, args: Any, output: Any) -> None:
    for convolution in _masked(encoder):
        convolution.own_frames = None


def _zero_padding(convolution: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    mask = getattr(convolution, "own_frames", None)
    return None if mask is None else (args[0].masked_fill(~mask.bool()[:, None], 0.0),)
