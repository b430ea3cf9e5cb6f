"""Modules that take their sizes from the weights that they have at the moment: while a model is gated, those change."""

from typing import Any

from torch import nn


class PresentLSTM(nn.LSTM):
    """An LSTM of so many hidden units as its weights have. The stock one holds on to the weights it was made with."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        weights: list[Any] = [getattr(self, name) for name in self._flat_weights_names]
        self._flat_weights = weights
        self.input_size, self.hidden_size = weights[0].shape[1], weights[1].shape[1]
        return super().forward(*args, **kwargs)
