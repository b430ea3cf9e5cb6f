"""HuBERT, wav2vec 2.0, UniSpeech-SAT: seven convolutions on the waveform, a positional convolution, transformer layers.

Base models norm the first convolution over time (group norm) and the layers after each sublayer; large models norm
every convolution over channels and the layers before each sublayer. Both are one code, here as in transformers.

The positional convolution's axis is its groups. Outer taps would be the other choice, but taps are not
interchangeable (only the outermost can go), while a group reads and writes channels of its own: 1/16 of the
convolution's parameters and of its work.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import (
    HubertForCTC,
    HubertModel,
    UniSpeechSatForCTC,
    UniSpeechSatModel,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
)

from diminuendo.families.family import Architecture, Family, Model
from diminuendo.families.parts import (
    along,
    attention_product,
    caught_states,
    encoder_in,
    feed_forward_axes,
    heads_axis,
    sublayer,
    whole,
    width_axis,
)
from diminuendo.modules import ragged_rnnt
from diminuendo.modules import ragged_wav2vec2 as ragged
from diminuendo.modules.filter_bank import FilterBankFrontEnd
from diminuendo.modules.residual import Residual
from diminuendo.structure.axis import Axis, Product, Slice


def front_end_axes(base: Any, prefix: str) -> Iterator[Axis]:
    layers = base.feature_extractor.conv_layers
    for i, layer in enumerate(layers):
        here = f"{prefix}feature_extractor.conv_layers.{i}"
        slices, norms = along(layer.conv, f"{here}.conv"), []
        norm = getattr(layer, "layer_norm", None)
        if norm is not None:
            slices += along(norm, f"{here}.layer_norm")
            if isinstance(norm, nn.LayerNorm):  # the group norm has one group per channel: nothing is shared
                norms.append(f"{here}.layer_norm")
        if i + 1 < len(layers):
            reader = f"{prefix}feature_extractor.conv_layers.{i + 1}.conv.weight"
        else:
            reader = f"{prefix}feature_projection.projection.weight"
            if hasattr(base.feature_projection, "layer_norm"):
                slices += along(base.feature_projection.layer_norm, f"{prefix}feature_projection.layer_norm")
                norms.append(f"{prefix}feature_projection.layer_norm")
        gate = Slice(reader, 1)
        yield Axis(
            f"feature_extractor.conv_layers.{i}.channels",
            "channels",
            layer.conv.out_channels,
            slices=(*slices, gate),
            gates=(gate,),
            norms=tuple(norms),
            minimum=1,
        )


def positional_axis(base: Any, prefix: str) -> Iterator[Axis]:
    module = base.encoder.pos_conv_embed
    kept = getattr(module, "kept", None)
    if kept == []:
        return
    conv, here = module.conv, f"{prefix}encoder.pos_conv_embed"
    block = conv.out_channels // conv.groups
    gates = slices = along(conv, f"{here}.conv", block)
    if getattr(module, "batch_norm", None) is not None:  # before the convolution, channel by channel
        slices += along(module.batch_norm, f"{here}.batch_norm", block)
        slices += (Slice(f"{here}.batch_norm.num_batches_tracked", None),)
    positions = tuple(kept if kept is not None else range(conv.groups))
    yield Axis("encoder.pos_conv_embed.groups", "groups", conv.groups, slices, gates, positions=positions)


def _attention_axes(layer: Any, name: str, prefix: str, norm: tuple[Slice, ...]) -> Iterator[Axis]:
    attention = layer.attention
    if not list(attention.parameters()):
        return
    yield sublayer(attention, name, prefix, "out_proj", norm)
    if hasattr(attention, "q_proj"):
        yield heads_axis(attention, name, prefix, ("q_proj", "k_proj", "v_proj"), "out_proj", attention.head_dim)


AttentionAxes = Callable[[Any, str, str, tuple[Slice, ...]], Iterator[Axis]]


def layer_axes(
    base: Any, prefix: str, pre_norm: bool, attention_axes: AttentionAxes = _attention_axes
) -> Iterator[Axis]:
    for i, layer in enumerate(base.encoder.layers):
        name = f"encoder.layers.{i}"
        norms: tuple[tuple[Slice, ...], tuple[Slice, ...]] = ((), ())
        if pre_norm:  # the norm before a sublayer goes with it
            norms = (
                whole(layer.layer_norm, f"{prefix}{name}.layer_norm"),
                whole(layer.final_layer_norm, f"{prefix}{name}.final_layer_norm"),
            )
        yield from attention_axes(layer, f"{name}.attention", prefix, norms[0])
        yield from feed_forward_axes(
            layer.feed_forward, f"{name}.feed_forward", prefix, "intermediate_dense", "output_dense", norms[1]
        )


def width_axes(
    model: Model, residual: Callable[[Any], Residual] = ragged.residual, *, gathered: bool = True
) -> Iterator[Axis]:
    """The width of the residual stream; not where an adapter reads it, which is left as it is."""
    base, prefix = encoder_in(model)
    if not getattr(base.config, "add_adapter", False):
        yield width_axis(model, base, prefix, residual(base.config), gathered=gathered)


def axes(model: Model, attention_axes: AttentionAxes = _attention_axes) -> tuple[Axis, ...]:
    """The axes of an encoder or of the recogniser around it, in the order of the signal."""
    base, prefix = encoder_in(model)
    layers = layer_axes(base, prefix, base.config.do_stable_layer_norm, attention_axes)
    return (*front_end_axes(base, prefix), *positional_axis(base, prefix), *layers, *width_axes(model))


def products(model: Model, frames: int, seconds: float) -> tuple[Product, ...]:
    return attention_products(model, axes(model), frames, seconds)


def attention_products(model: Model, axes: Sequence[Axis], frames: int, seconds: float) -> tuple[Product, ...]:
    """Queries times keys, and weights times values: frames x frames x head width each, for every head."""
    head_dim = model.config.hidden_size // model.config.num_attention_heads
    heads = [axis for axis in axes if axis.kind == "heads"]
    return tuple(attention_product(axis, 2.0 * frames * head_dim, frames, seconds) for axis in heads)


def plain(model: Model) -> Model:
    """A deep copy in evaluation mode, the positional convolution's weight norm (it spans groups) multiplied out."""
    copied = copy.deepcopy(model)
    positional = encoder_in(copied)[0].encoder.pos_conv_embed
    conv = getattr(positional, "conv", None)
    if conv is not None and parametrize.is_parametrized(conv):
        # Not by remove_parametrizations: a copy shares its class with the original, and that would strip both.
        positional.conv = nn.Conv1d(
            conv.in_channels, conv.out_channels, conv.kernel_size[0], padding=conv.padding[0], groups=conv.groups
        ).to(conv.weight)
        positional.conv.load_state_dict({"weight": conv.weight.detach(), "bias": conv.bias.detach()})
    return copied.eval()


def hidden_states(model: Model, inputs: Mapping[str, Tensor]) -> tuple[Float[Tensor, "batch frames dim"], ...]:
    """The feature projection's output (before the positional convolution), then every layer's output.

    The last one is the encoder's output: for pre-norm models after the final norm. A recogniser's head does not run.
    With `mask_time_indices` among the inputs the first one is as it was before masking.
    """
    base, _ = encoder_in(model)
    masked = "mask_time_indices" in inputs  # transformers writes the mask's embedding into the tensor itself
    run = partial(base, **inputs)
    return caught_states(run, base.feature_projection, base.encoder.layers, base.encoder, keep_first=masked)


def frame_lengths(model: Model, sample_lengths: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    base, _ = encoder_in(model)
    if isinstance(base.feature_extractor, FilterBankFrontEnd):
        frames: Tensor = base.feature_extractor.frames(sample_lengths)
        return frames
    lengths = sample_lengths
    for layer in base.feature_extractor.conv_layers:
        lengths = (lengths - layer.conv.kernel_size[0]) // layer.conv.stride[0] + 1
    return lengths


def _family(name: str, encoder: Any, ctc: Any) -> Family:
    return Family(
        architectures=(
            Architecture("AutoModel", encoder, getattr(ragged, f"Ragged{name}Model")),
            Architecture("AutoModelForCTC", ctc, getattr(ragged, f"Ragged{name}ForCTC")),
            Architecture("AutoModelForRNNT", None, getattr(ragged_rnnt, f"Ragged{name}ForRNNT")),
        ),
        plain=plain,
        declared=axes,
        products=products,
        hidden_states=hidden_states,
        frame_lengths=frame_lengths,
    )


HUBERT = _family("Hubert", HubertModel, HubertForCTC)
WAV2VEC2 = _family("Wav2Vec2", Wav2Vec2Model, Wav2Vec2ForCTC)
UNISPEECH_SAT = _family("UniSpeechSat", UniSpeechSatModel, UniSpeechSatForCTC)
