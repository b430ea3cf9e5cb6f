"""Data2Vec audio: wav2vec 2.0's layers, always post-norm, and a stack of positional convolutions.

Every convolution is normed over all of its channels. Of the stack, group g of one convolution reads what group g of
the one before wrote, so the axis is the groups of all of them: a group goes from the whole stack, and the norms are
left with the channels of the others.

No weight reads the stack's output, and a gate on what a convolution writes is cancelled by the norm behind it: groups
that are shut equally far would give what open ones do. So the gates lie on a weight that `plain` gives the last norm.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import Data2VecAudioForCTC, Data2VecAudioModel

from diminuendo.families import wav2vec2
from diminuendo.families.family import Architecture, Family, Model
from diminuendo.families.parts import along, encoder_in
from diminuendo.modules.padding import mask_padding
from diminuendo.modules.ragged_data2vec import CONVOLUTIONS, RaggedData2VecAudioForCTC, RaggedData2VecAudioModel
from diminuendo.modules.ragged_rnnt import RaggedData2VecAudioForRNNT
from diminuendo.structure.axis import Axis, Product, Slice


def _positional_axis(base: Any, prefix: str) -> Iterator[Axis]:
    module, here = base.encoder.pos_conv_embed, "encoder.pos_conv_embed"
    if not len(module.layers):
        return
    conv = module.layers[0].conv
    block = conv.out_channels // conv.groups
    slices: tuple[Slice, ...] = ()
    norms: tuple[str, ...] = ()
    for i, layer in enumerate(module.layers):
        slices += along(layer.conv, f"{prefix}{here}.layers.{i}.conv", block)
        norms += (f"{prefix}{here}.layers.{i}.layer_norm",)
    gates = along(module.layers[-1].layer_norm, norms[-1], block)
    positions = tuple(getattr(module, "kept", range(conv.groups)))
    yield Axis(f"{here}.groups", "groups", conv.groups, (*slices, *gates), gates, norms, positions=positions)


def axes(model: Model) -> tuple[Axis, ...]:
    """The axes of an encoder or of the recogniser around it; the last positional norm as `plain` makes it."""
    base, prefix = encoder_in(model)
    layers = wav2vec2.layer_axes(base, prefix, pre_norm=False)
    width = wav2vec2.width_axes(model)
    return (*wav2vec2.front_end_axes(base, prefix), *_positional_axis(base, prefix), *layers, *width)


def products(model: Model, frames: int, seconds: float) -> tuple[Product, ...]:
    return wav2vec2.attention_products(model, axes(model), frames, seconds)


def plain(model: Model) -> Model:
    copied = wav2vec2.plain(model)
    for layer in encoder_in(copied)[0].encoder.pos_conv_embed.layers[-1:]:
        if layer.layer_norm.weight is None:
            norm = nn.LayerNorm(layer.conv.out_channels, layer.layer_norm.eps, bias=False)
            layer.layer_norm = norm.to(layer.conv.weight)
    mask_padding(encoder_in(copied)[0].encoder, CONVOLUTIONS)
    return copied.eval()


DATA2VEC_AUDIO = Family(
    architectures=(
        Architecture("AutoModel", Data2VecAudioModel, RaggedData2VecAudioModel),
        Architecture("AutoModelForCTC", Data2VecAudioForCTC, RaggedData2VecAudioForCTC),
        Architecture("AutoModelForRNNT", None, RaggedData2VecAudioForRNNT),
    ),
    plain=plain,
    declared=axes,
    products=products,
    hidden_states=wav2vec2.hidden_states,
    frame_lengths=wav2vec2.frame_lengths,
    mask_padding=lambda model: mask_padding(encoder_in(model)[0].encoder, CONVOLUTIONS),
)
