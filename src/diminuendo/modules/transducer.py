"""What transducers have beside their encoder: predictor and joint network, laid out as Parakeet's.

Which predictor it is says the configuration's `predictor`: "lstm", also where there is none, or "stateless", which is a
class of ours in every family.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .ragged import Ragged, Shape, resize

EMBEDDING_AXIS, LSTM_AXIS, JOINT_AXIS = "decoder.embedding.channels", "decoder.lstm.channels", "joint.channels"
TRANSDUCER_AXES = (EMBEDDING_AXIS, LSTM_AXIS, JOINT_AXIS)
"""Those of both predictors; a stateless one has no LSTM."""

LABELS_SEEN = 2


class FirstStepDecoder(nn.Module):
    """Mixin: the predictor's first step makes its cache of the sizes that there are, not of the configuration's."""

    def forward(self, input_ids: Tensor, cache: Any = None) -> Tensor:
        if cache is None or cache.is_initialized:
            return super().forward(input_ids, cache)  # type: ignore[no-any-return]
        output, (hidden, cell) = self.lstm(self.embedding(input_ids))  # type: ignore[operator]
        cache.cache = self.decoder_projector(output)  # type: ignore[operator]
        cache.hidden_state, cache.cell_state, cache.is_initialized = hidden, cell, True
        return cache.cache  # type: ignore[no-any-return]


class StatelessDecoder(nn.Module):
    """A predictor without memory: of the last two labels the embeddings, a depthwise convolution over both, and ReLU.

    After Ghodsi et al. 2020, "RNN-transducer with stateless prediction network". Before the first label there are
    blanks.
    """

    def __init__(self, blank: int, labels: int, channels: int, joint: int) -> None:
        super().__init__()
        self.blank_token_id = blank
        self.embedding = nn.Embedding(labels, channels)
        self.conv = nn.Conv1d(channels, channels, LABELS_SEEN, groups=channels, bias=False)
        self.decoder_projector = nn.Linear(channels, joint)

    def reset_parameters(self) -> None:
        """torch's own weights: by transformers', one small factor after the other, all labels would look the same."""
        for module in (self.embedding, self.conv, self.decoder_projector):
            module.reset_parameters()

    def forward(self, input_ids: Tensor, cache: Any = None) -> Tensor:
        """What follows each of the labels [batch, labels], the first of which is the blank: [batch, labels, joint].

        cache: as transformers' generation has it. Then there is one label, and after a blank is what was before.
        """
        if cache is None:
            return self.after(torch.full_like(input_ids[:, :1], self.blank_token_id), input_ids)
        last = cache.hidden_state if cache.is_initialized else torch.full_like(input_ids, self.blank_token_id)
        output = self.after(last, input_ids)
        if cache.is_initialized:
            emitted = input_ids != self.blank_token_id
            output = torch.where(emitted[:, :, None], output, cache.cache)
            input_ids = torch.where(emitted, input_ids, last)
        cache.cache, cache.hidden_state, cache.is_initialized = output, input_ids, True
        return output

    def after(self, last: Tensor, labels: Tensor) -> Tensor:
        """What follows each of the labels [rows, labels], the one before the first being `last` [rows, 1]."""
        seen = self.embedding(torch.cat([last, labels], 1)).transpose(1, 2)
        output: Tensor = self.decoder_projector(self.conv(seen).relu().transpose(1, 2))
        return output


def is_stateless(model: Any) -> bool:
    return getattr(model.config, "predictor", "lstm") == "stateless"


def shrink_transducer(model: Any, shape: Shape) -> None:
    """The widths of the predictor, which is made stateless here if it is to be, and of the joint network."""
    embedding, joint, labels = shape[EMBEDDING_AXIS], shape[JOINT_AXIS], model.decoder.embedding.num_embeddings
    if is_stateless(model):
        model.decoder = StatelessDecoder(model.config.blank_token_id, labels, embedding, joint)
    else:
        decoder, width = model.decoder, shape[LSTM_AXIS]
        decoder.__class__ = type(type(decoder).__name__, (FirstStepDecoder, type(decoder)), {})
        decoder.embedding = nn.Embedding(labels, embedding)
        decoder.lstm = nn.LSTM(embedding, width, num_layers=decoder.lstm.num_layers, batch_first=True)
        resize(decoder.decoder_projector, reads=width, writes=joint)
    resize(model.encoder_projector, writes=joint)
    resize(model.joint.head, reads=joint)


class RaggedTransducer(Ragged):
    """Mixin: an encoder with layers of sizes of their own, and a transducer's head."""

    def shrink(self, shape: Shape) -> None:
        super().shrink(shape)
        shrink_transducer(self, shape)
