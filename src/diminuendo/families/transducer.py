"""A transducer's predictor and joint network: the same on every encoder, with widths of their own.

A hidden unit of the predictor is one member in all of its LSTM layers, so that they stay one module. Of a stateless one
a channel is a member: in the embedding, in the depthwise convolution, and for the matrix that reads both.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from diminuendo.modules.transducer import EMBEDDING_AXIS, JOINT_AXIS, LSTM_AXIS, is_stateless
from diminuendo.structure.axis import Axis, Slice

LABELS_PER_SECOND = 4.0  # of subwords in read English


def is_transducer(model: Any) -> bool:
    return hasattr(model, "joint")


def transducer_axes(model: Any) -> Iterator[Axis]:
    """The widths of the predictor and of the joint network; nothing of any other model."""
    if not is_transducer(model):
        return
    yield from _stateless_axes(model.decoder) if is_stateless(model) else _lstm_axes(model.decoder.lstm)
    head = Slice("joint.head.weight", 1)
    projections = [
        Slice(f"{path}.{part}", 0)
        for path in ("encoder_projector", "decoder.decoder_projector")
        for part in ("weight", "bias")
    ]
    yield Axis(JOINT_AXIS, "channels", model.joint.head.in_features, (*projections, head), (head,), minimum=1)


def _stateless_axes(decoder: Any) -> Iterator[Axis]:
    written, reader = Slice("decoder.embedding.weight", 1), Slice("decoder.decoder_projector.weight", 1)
    slices = (written, Slice("decoder.conv.weight", 0), reader)
    yield Axis(EMBEDDING_AXIS, "channels", decoder.embedding.embedding_dim, slices, (reader,), minimum=1)


def _lstm_axes(lstm: Any) -> Iterator[Axis]:
    embedding, first = Slice("decoder.embedding.weight", 1), Slice("decoder.lstm.weight_ih_l0", 1)
    yield Axis(EMBEDDING_AXIS, "channels", lstm.input_size, (embedding, first), (first,), minimum=1)
    width, layers = lstm.hidden_size, range(lstm.num_layers)
    four = tuple(width * i for i in range(4))  # the gates of an LSTM
    names = [f"decoder.lstm.{part}_l{i}" for i in layers for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    readers = [
        *(Slice(f"decoder.lstm.weight_hh_l{i}", 1) for i in layers),
        *(Slice(f"decoder.lstm.weight_ih_l{i}", 1) for i in layers if i > 0),
        Slice("decoder.decoder_projector.weight", 1),
    ]
    rows = [Slice(name, 0, offsets=four) for name in names]
    yield Axis(LSTM_AXIS, "channels", width, (*rows, *readers), tuple(readers), minimum=1)


def run(model: Any, inputs: Mapping[str, Tensor]) -> Any:
    """Runs a model on its input; of a transducer, all that runs once for every frame."""
    return model.get_audio_features(**inputs) if is_transducer(model) else model(**inputs)


def rates(model: Any, frames: float) -> dict[str, float]:
    """The predictor runs for every label; the joint network, decoding greedily, for every label and every frame.

    frames: a second. TDT jumps over frames, so of it this is the most that it can be.
    """
    if not is_transducer(model):
        return {}
    multiplied = ("conv.weight", "decoder_projector.weight", "lstm.weight")  # an embedding is looked up
    predictor = [name for name, _ in model.decoder.named_parameters() if name.startswith(multiplied)]
    return {
        **{f"decoder.{name}": LABELS_PER_SECOND for name in predictor},
        "joint.head.weight": LABELS_PER_SECOND + frames,
    }
