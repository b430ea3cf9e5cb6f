"""HuBERT, wav2vec 2.0 and UniSpeech-SAT with a size of its own for every layer.

With `output_attentions` there are maps of those layers alone that have attention.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import (
    HubertConfig,
    HubertForCTC,
    HubertModel,
    UniSpeechSatConfig,
    UniSpeechSatForCTC,
    UniSpeechSatModel,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
)

from .ragged import (
    EmptyAttention,
    Ragged,
    RaggedConfig,
    RemovedAttention,
    Shape,
    resize,
    shrink_feed_forward,
    size,
)
from .residual import Residual, Stream, stream_of


class KeptGroups(nn.Module):
    """A positional embedding with some of its groups of channels: it reads and writes only those.

    Groups are of the residual stream's original width, whatever is left of it.
    """

    def __init__(self, num_groups: int, kept: list[int], stream: Stream) -> None:
        super().__init__()
        self.num_groups, self.kept, self.stream = num_groups, kept, stream

    def embed(self, read: Tensor) -> Tensor:
        """Of the kept groups' channels, [batch, channels, frames], as many."""
        raise NotImplementedError

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.kept:
            return torch.zeros_like(hidden)
        hidden = self.stream.spread(hidden)
        batch, frames, width = hidden.shape
        groups = hidden.transpose(1, 2).reshape(batch, self.num_groups, width // self.num_groups, frames)
        written = self.embed(groups[:, self.kept].flatten(1, 2))
        out = torch.zeros_like(groups, dtype=written.dtype)
        out[:, self.kept] = written.unflatten(1, (len(self.kept), -1))
        return self.stream.gather(out.flatten(1, 2).transpose(1, 2))


class KeptGroupsPositionalConv(KeptGroups):
    def __init__(self, stock: nn.Module, kept: list[int], stream: Stream) -> None:
        conv: Any = stock.conv
        super().__init__(conv.groups, kept, stream)
        self.batch_norm: nn.Module | None = None
        self.padding: Any = stock.padding
        self.activation: Any = stock.activation
        if kept:
            width = conv.out_channels // conv.groups * len(kept)
            if getattr(stock, "batch_norm", None) is not None:
                self.batch_norm = nn.BatchNorm1d(width)
            self.conv = nn.Conv1d(width, width, conv.kernel_size[0], padding=conv.padding[0], groups=len(kept))

    def embed(self, read: Tensor) -> Tensor:
        if self.batch_norm is not None:
            read = self.batch_norm(read)
        return self.activation(self.padding(self.conv(read)))  # type: ignore[no-any-return]


def residual(config: Any) -> Residual:
    """Of wav2vec 2.0's layers; `adapter_layer` is in those of models of many languages."""
    layer = r"encoder\.layers\.\d+\."
    return Residual(
        source=r"feature_projection\.projection",
        reads=layer + r"(attention\.[qkv]_proj|feed_forward\.intermediate_dense|adapter_layer\.linear_1)",
        writes=layer + r"(attention\.out_proj|feed_forward\.output_dense|adapter_layer\.linear_2)",
        norms=r"encoder\.layer_norm|" + layer + r"(layer_norm|final_layer_norm|adapter_layer\.norm)",
    )


def shrink_front_end(base: Any, shape: Shape) -> None:
    read = base.feature_extractor.conv_layers[0].conv.in_channels
    for i, layer in enumerate(base.feature_extractor.conv_layers):
        channels = size(shape[f"feature_extractor.conv_layers.{i}.channels"])
        resize(layer.conv, reads=read, writes=channels)
        layer.in_conv_dim, layer.out_conv_dim = read, channels
        if getattr(layer, "layer_norm", None) is not None:
            resize(layer.layer_norm, writes=channels)
        read = channels
    projection = base.feature_projection
    if hasattr(projection, "layer_norm"):
        resize(projection.layer_norm, writes=read)
    resize(projection.projection, reads=read)


def shrink_positional(encoder: Any, shape: Shape) -> None:
    positional = encoder.pos_conv_embed
    if parametrize.is_parametrized(positional.conv):  # weight norm runs over the groups, so it is multiplied out
        parametrize.remove_parametrizations(positional.conv, "weight")
    groups, stream = shape["encoder.pos_conv_embed.groups"], stream_of(shape, encoder.config)
    encoder.pos_conv_embed = KeptGroupsPositionalConv(positional, groups, stream)


def shrink_attention(layer: Any, name: str, shape: Shape) -> None:
    attention, heads = layer.attention, size(shape[f"{name}.attention.heads"])
    if not shape[f"{name}.attention"]:
        layer.attention = RemovedAttention()
    elif heads == 0:
        layer.attention = EmptyAttention("out_proj", attention.out_proj.out_features)
    else:
        for part in ("q_proj", "k_proj", "v_proj"):
            resize(getattr(attention, part), writes=heads * attention.head_dim)
        resize(attention.out_proj, reads=heads * attention.head_dim)
        attention.num_heads = heads


def drop_norms(layer: Any, name: str, shape: Shape) -> None:
    """Of a layer that norms before a sublayer: the norm goes with it, since it has no other reader."""
    if not shape[f"{name}.attention"]:
        layer.layer_norm = nn.Identity()
    if not shape[f"{name}.feed_forward"]:
        layer.final_layer_norm = nn.Identity()


class RaggedWav2Vec2Layers(Ragged):
    residual = staticmethod(residual)

    def shrink(self, shape: Shape) -> None:
        base = self.encoder_inside
        shrink_front_end(base, shape)
        shrink_positional(base.encoder, shape)
        for i, layer in enumerate(base.encoder.layers):
            name = f"encoder.layers.{i}"
            shrink_attention(layer, name, shape)
            shrink_feed_forward(layer, "feed_forward", name, shape, "intermediate_dense", "output_dense")
            if base.config.do_stable_layer_norm:
                drop_norms(layer, name, shape)


class _RaggedConfig(RaggedConfig):
    sentinel = "conv_dim"


class RaggedHubertConfig(_RaggedConfig, HubertConfig):
    model_type = "diminuendo_hubert"


class RaggedHubertModel(RaggedWav2Vec2Layers, HubertModel):
    config_class = RaggedHubertConfig


class RaggedHubertForCTC(RaggedWav2Vec2Layers, HubertForCTC):
    config_class = RaggedHubertConfig


class RaggedWav2Vec2Config(_RaggedConfig, Wav2Vec2Config):
    model_type = "diminuendo_wav2vec2"


class RaggedWav2Vec2Model(RaggedWav2Vec2Layers, Wav2Vec2Model):
    config_class = RaggedWav2Vec2Config


class RaggedWav2Vec2ForCTC(RaggedWav2Vec2Layers, Wav2Vec2ForCTC):
    config_class = RaggedWav2Vec2Config


class RaggedUniSpeechSatConfig(_RaggedConfig, UniSpeechSatConfig):
    model_type = "diminuendo_unispeech_sat"


class RaggedUniSpeechSatModel(RaggedWav2Vec2Layers, UniSpeechSatModel):
    config_class = RaggedUniSpeechSatConfig


class RaggedUniSpeechSatForCTC(RaggedWav2Vec2Layers, UniSpeechSatForCTC):
    config_class = RaggedUniSpeechSatConfig
