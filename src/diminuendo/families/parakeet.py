"""Parakeet and streaming Nemotron: convolutions over time and frequency, conformer layers, and CTC, RNN-T or TDT.

Both are one code: the streaming one norms its convolution modules over channels where the other has a batch norm, and
names its subsampling differently.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    NemotronAsrStreamingEncoder,
    NemotronAsrStreamingFeatureExtractor,
    NemotronAsrStreamingForRNNT,
    ParakeetEncoder,
    ParakeetFeatureExtractor,
    ParakeetForCTC,
    ParakeetForRNNT,
    ParakeetForTDT,
)

from diminuendo.families.conformer import convolution_axes
from diminuendo.families.family import Architecture, Family, Features, Model
from diminuendo.families.inputs import SAMPLING_RATE, noise
from diminuendo.families.parts import (
    along,
    attention_product,
    caught_states,
    feed_forward_axes,
    heads_axis,
    sublayer,
    whole,
    width_axis,
)
from diminuendo.modules import ragged_nemotron, ragged_parakeet
from diminuendo.modules.ragged_parakeet import NORMS, count_own_heads, residual
from diminuendo.structure.axis import Axis, Product, Slice

LOG_MEL = (-11.0, 4.0)  # mean and deviation of what the streaming extractor gives, of several corpora about
HOP = 160  # samples from one frame of features to the next, in the extractors of both


def encoder_of(model: Model) -> Model:
    return getattr(model, "encoder", model)


def _stages(subsampling: Any, path: str) -> list[tuple[str, Any, str | None]]:
    """(path of what mixes channels, the convolution, path of the depthwise convolution before it) of every stage."""
    if hasattr(subsampling, "conv_in"):
        stages: list[tuple[str, Any, str | None]] = [(f"{path}.conv_in", subsampling.conv_in, None)]
        for i, layer in enumerate(subsampling.layers):
            here = f"{path}.layers.{i}"
            stages.append((f"{here}.pointwise_conv", layer.pointwise_conv, f"{here}.depthwise_conv"))
        return stages
    found = [
        (f"{path}.layers.{i}", layer) for i, layer in enumerate(subsampling.layers) if isinstance(layer, nn.Conv2d)
    ]
    return [(*found[0], None), *((*found[i], found[i - 1][0]) for i in range(2, len(found), 2))]


def _subsampling_axes(encoder: Any, prefix: str) -> Iterator[Axis]:
    """Gated where they are mixed: in front of a depthwise convolution a gate would leave its biases."""
    stages = _stages(encoder.subsampling, f"{prefix}subsampling")
    for i, (path, conv, _) in enumerate(stages):
        slices = along(conv, path)
        if i + 1 < len(stages):
            reader, _, depthwise = stages[i + 1]
            gate = Slice(f"{reader}.weight", 1)
            slices += tuple(Slice(f"{depthwise}.{part}", 0) for part in ("weight", "bias"))
        else:
            linear = encoder.subsampling.linear
            gate = Slice(f"{prefix}subsampling.linear.weight", 1, linear.in_features // conv.out_channels)
        yield Axis(f"subsampling.{i}.channels", "channels", conv.out_channels, (*slices, gate), (gate,), minimum=1)


def _attention_axes(attention: Any, name: str, prefix: str, norm: tuple[Slice, ...]) -> Iterator[Axis]:
    if not list(attention.parameters()):
        return
    yield sublayer(attention, name, prefix, "o_proj", norm)
    if hasattr(attention, "q_proj"):
        biases = tuple(Slice(f"{prefix}{name}.{part}", 0) for part in ("bias_u", "bias_v"))
        inputs = ("q_proj", "k_proj", "v_proj", "relative_k_proj")
        yield heads_axis(attention, name, prefix, inputs, "o_proj", attention.head_dim, biases)


def axes(model: Model) -> tuple[Axis, ...]:
    """The axes of an encoder or of the recogniser around it, in the order of the signal."""
    encoder = encoder_of(model)
    prefix = "" if encoder is model else "encoder."
    found = [*_subsampling_axes(encoder, prefix)]
    for i, layer in enumerate(encoder.layers):
        for part, norm in NORMS.items():
            name, module = f"layers.{i}.{part}", getattr(layer, part)
            before = whole(getattr(layer, norm), f"{prefix}layers.{i}.{norm}")
            if part == "self_attn":
                found += _attention_axes(module, name, prefix, before)
            elif part == "conv":
                found += convolution_axes(module, name, prefix, "norm", before=before)
            else:
                found += feed_forward_axes(module, name, prefix, "linear1", "linear2", before)
    found.append(width_axis(model, encoder, prefix, residual(encoder.config), gathered=False))
    return tuple(found)


def products(model: Model, frames: int, seconds: float) -> tuple[Product, ...]:
    """For every head queries times keys and times positions (2 T - 1 of them), and weights times values."""
    config = encoder_of(model).config
    head_dim = config.hidden_size // config.num_attention_heads
    per_frame = (2.0 * frames + 2 * frames - 1) * head_dim
    return tuple(attention_product(axis, per_frame, frames, seconds) for axis in axes(model) if axis.kind == "heads")


def plain(model: Model) -> Model:
    """A deep copy in evaluation mode, whose attentions count their own heads."""
    copied = copy.deepcopy(model).eval()
    count_own_heads(encoder_of(copied))
    return copied


def hidden_states(model: Model, inputs: Mapping[str, Tensor]) -> tuple[Float[Tensor, "batch frames dim"], ...]:
    """The subsampling's output, then every layer's. A recogniser's head does not run."""
    encoder = encoder_of(model)
    # The streaming encoder scales its first state in place.
    return caught_states(partial(encoder, **inputs), encoder.subsampling, encoder.layers, encoder, keep_first=True)


def frame_lengths(model: Model, sample_lengths: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    lengths: Tensor = model._get_subsampling_output_length(sample_lengths // HOP)
    return lengths.long()


def example(model: Model, samples: int) -> dict[str, Tensor]:
    return {"input_features": noise(model, 1, samples // HOP, encoder_of(model).config.num_mel_bins)}


def initialise(encoder: Model) -> None:
    """Weights that a small encoder learns from: torch's own, and in the subsampling such as keep a signal's size.

    With transformers' what the subsampling puts out has a deviation of 1e-6, below the next norm's epsilon. With
    torch's it has 0.05, of which 0.01 is of frames: shrunk by every ReLU, speech is left behind the biases. Here (He et
    al. 2015) it has about 1, and a word's frames are told apart in half the steps (docs/LOG.md).
    """
    for module in encoder.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            module.reset_parameters()
    for module in encoder.subsampling.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            halved = isinstance(module, nn.Conv2d) and module.groups == 1  # by a ReLU behind it
            nn.init.normal_(module.weight, std=((2.0 if halved else 1.0) / module.weight[0].numel()) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialise_streaming(encoder: Model) -> None:
    """The same for features that no extractor has normalised: the first convolution does it."""
    initialise(encoder)
    mean, deviation = LOG_MEL
    first = encoder.subsampling.conv_in
    with torch.no_grad():
        first.weight /= deviation
        first.bias -= mean * first.weight.sum((1, 2, 3))


def _stacked(config: Any) -> int:
    """Features in a frame: every stage of the subsampling takes one step for `stride` of what it reads."""
    stacked: int = config.subsampling_conv_stride ** int(math.log2(config.subsampling_factor))
    return stacked


def features(config: Any) -> Features:
    return Features(ParakeetFeatureExtractor(config.num_mel_bins), HOP / SAMPLING_RATE, _stacked(config))


def streaming_features(config: Any) -> Features:
    """Its convolutions see nothing later: the first frame is made of one feature alone, the others end with theirs."""
    extractor, stacked = NemotronAsrStreamingFeatureExtractor(config.num_mel_bins), _stacked(config)
    return Features(extractor, HOP / SAMPLING_RATE, stacked, first=1 - stacked)


def _family(
    *architectures: Architecture,
    features: Callable[[Any], Features],
    initialise: Callable[[Model], None],
    streams: bool = False,
) -> Family:
    return Family(
        architectures=architectures,
        plain=plain,
        declared=axes,
        products=products,
        hidden_states=hidden_states,
        frame_lengths=frame_lengths,
        example=example,
        encoder=encoder_of,
        streams=streams,
        features=features,
        initialise=initialise,
    )


PARAKEET = _family(
    Architecture("AutoModel", ParakeetEncoder, ragged_parakeet.RaggedParakeetEncoder),
    Architecture("AutoModelForCTC", ParakeetForCTC, ragged_parakeet.RaggedParakeetForCTC),
    Architecture("AutoModelForRNNT", ParakeetForRNNT, ragged_parakeet.RaggedParakeetForRNNT),
    Architecture("AutoModelForTDT", ParakeetForTDT, ragged_parakeet.RaggedParakeetForTDT),
    features=features,
    initialise=initialise,
)
NEMOTRON = _family(
    Architecture("AutoModel", NemotronAsrStreamingEncoder, ragged_nemotron.RaggedNemotronEncoder),
    Architecture("AutoModelForCTC", None, ragged_nemotron.RaggedNemotronForCTC),
    Architecture("AutoModelForRNNT", NemotronAsrStreamingForRNNT, ragged_nemotron.RaggedNemotronForRNNT),
    streams=True,
    features=streaming_features,
    initialise=initialise_streaming,
)
