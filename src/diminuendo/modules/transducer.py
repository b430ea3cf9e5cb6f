"""What transducers have beside their encoder: predictor and joint network, laid out as Parakeet's."""

from typing import Any

from torch import Tensor, nn

from .ragged import Ragged, Shape, resize

TRANSDUCER_AXES = ("decoder.embedding.channels", "decoder.lstm.channels", "joint.channels")


class FirstStepDecoder(nn.Module):
    """Mixin: the predictor's first step makes its cache of the sizes that there are, not of the configuration's."""

    def forward(self, input_ids: Tensor, cache: Any = None) -> Tensor:
        if cache is None or cache.is_initialized:
            return super().forward(input_ids, cache)  # type: ignore[no-any-return]
        output, (hidden, cell) = self.lstm(self.embedding(input_ids))  # type: ignore[operator]
        cache.cache = self.decoder_projector(output)  # type: ignore[operator]
        cache.hidden_state, cache.cell_state, cache.is_initialized = hidden, cell, True
        return cache.cache  # type: ignore[no-any-return]


def shrink_transducer(model: Any, shape: Shape) -> None:
    """The widths of the predictor and of the joint network."""
    decoder = model.decoder
    decoder.__class__ = type(type(decoder).__name__, (FirstStepDecoder, type(decoder)), {})
    embedding, width, joint = (shape[name] for name in TRANSDUCER_AXES)
    decoder.embedding = nn.Embedding(decoder.embedding.num_embeddings, embedding)
    decoder.lstm = nn.LSTM(embedding, width, num_layers=decoder.lstm.num_layers, batch_first=True)
    resize(decoder.decoder_projector, reads=width, writes=joint)
    resize(model.encoder_projector, writes=joint)
    resize(model.joint.head, reads=joint)


class RaggedTransducer(Ragged):
    """Mixin: an encoder with layers of sizes of their own, and a transducer's head."""

    def shrink(self, shape: Shape) -> None:
        super().shrink(shape)
        shrink_transducer(self, shape)
