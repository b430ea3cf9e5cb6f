"""Modules that follow the sizes of their input or weights: while a model is gated, those change with every draw."""

from typing import Any

from torch import Tensor, nn


class _DepthwiseOfInput:
    """A convolution with one filter for every channel that comes in."""

    def _conv_forward(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        self.groups = self.in_channels = hidden.shape[1]
        return super()._conv_forward(hidden, weight, bias)  # type: ignore[misc]


class _LSTMOfWeights:
    """An LSTM of the weights that it has now. The stock one holds on to those it was made with."""

    _flat_weights_names: list[str]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._flat_weights = [getattr(self, name) for name in self._flat_weights_names]
        self.input_size, self.hidden_size = self._flat_weights[0].shape[1], self._flat_weights[1].shape[1]
        return super().forward(*args, **kwargs)  # type: ignore[misc]


def is_depthwise(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv1d | nn.Conv2d):
        return False
    return 1 < module.groups == module.in_channels == module.out_channels


def follow_sizes(module: nn.Module) -> None:
    """Lets a depthwise convolution or an LSTM follow its sizes, in place; it stays of its class."""
    mixin = _LSTMOfWeights if isinstance(module, nn.LSTM) else _DepthwiseOfInput if is_depthwise(module) else None
    if mixin is not None:
        module.__class__ = type(type(module).__name__, (mixin, type(module)), {})
