"""HuBERT, wav2vec 2.0 and UniSpeech-SAT with a size of its own for every layer.

This file travels with every saved model, so that `AutoModel.from_pretrained(directory, trust_remote_code=True)` needs
only torch and transformers 5. The configuration is the original one plus a key `diminuendo` whose `shape` gives the
kept members per axis: a number, or the list of kept members where their positions matter. With `output_attentions`
there are maps of those layers alone that have attention.
"""

import json
from typing import Any

import torch
import transformers
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

if int(transformers.__version__.split(".")[0]) < 5:
    raise ImportError(f"this model's code needs transformers 5 or newer, here is {transformers.__version__}")


class Constant(nn.Module):
    """What remains of a sublayer that kept no head or neuron: its output bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.zeros_like(hidden) + self.bias


class EmptyAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_proj = Constant(width)

    def forward(self, hidden: Tensor, **_: Any) -> tuple[Tensor, None]:
        return self.out_proj(hidden), None


class EmptyFeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.output_dense = Constant(width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.output_dense(hidden)  # type: ignore[no-any-return]


class RemovedAttention(nn.Module):
    def forward(self, hidden: Tensor, **_: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden), None


class RemovedFeedForward(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        return torch.zeros_like(hidden)


class KeptGroupsPositionalConv(nn.Module):
    """The positional convolution with some of its groups: it reads and writes only their channels."""

    def __init__(self, stock: nn.Module, kept: list[int]) -> None:
        super().__init__()
        conv: Any = stock.conv
        self.num_groups, self.kept = conv.groups, kept
        self.batch_norm: nn.Module | None = None
        self.padding: Any = stock.padding
        self.activation: Any = stock.activation
        if kept:
            width = conv.out_channels // conv.groups * len(kept)
            if getattr(stock, "batch_norm", None) is not None:
                self.batch_norm = nn.BatchNorm1d(width)
            self.conv = nn.Conv1d(width, width, conv.kernel_size[0], padding=conv.padding[0], groups=len(kept))

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.kept:
            return torch.zeros_like(hidden)
        batch, frames, width = hidden.shape
        groups = hidden.transpose(1, 2).reshape(batch, self.num_groups, width // self.num_groups, frames)
        read = groups[:, self.kept].flatten(1, 2)
        if self.batch_norm is not None:
            read = self.batch_norm(read)
        written = self.activation(self.padding(self.conv(read)))
        out = torch.zeros_like(groups, dtype=written.dtype)
        out[:, self.kept] = written.unflatten(1, (len(self.kept), -1))
        return out.flatten(1, 2).transpose(1, 2)


def _size(kept: int | list[int]) -> int:
    return kept if isinstance(kept, int) else len(kept)


def _shrink_front_end(base: Any, shape: dict[str, Any]) -> None:
    read = 1
    for i, layer in enumerate(base.feature_extractor.conv_layers):
        channels = _size(shape[f"feature_extractor.conv_layers.{i}.channels"])
        old = layer.conv
        layer.conv = nn.Conv1d(read, channels, old.kernel_size[0], stride=old.stride[0], bias=old.bias is not None)
        layer.in_conv_dim, layer.out_conv_dim = read, channels
        norm = getattr(layer, "layer_norm", None)
        if isinstance(norm, nn.GroupNorm):
            layer.layer_norm = nn.GroupNorm(channels, channels, eps=norm.eps, affine=True)
        elif norm is not None:
            layer.layer_norm = nn.LayerNorm(channels, eps=norm.eps)
        read = channels
    projection = base.feature_projection
    if hasattr(projection, "layer_norm"):
        projection.layer_norm = nn.LayerNorm(read, eps=projection.layer_norm.eps)
    projection.projection = nn.Linear(read, projection.projection.out_features)


def _shrink_layer(layer: Any, name: str, shape: dict[str, Any], *, pre_norm: bool) -> None:
    attention, feed_forward = layer.attention, layer.feed_forward
    width, heads = attention.embed_dim, _size(shape[f"{name}.attention.heads"])
    if not shape[f"{name}.attention"]:
        layer.attention = RemovedAttention()
    elif heads == 0:
        layer.attention = EmptyAttention(width)
    else:
        inner = heads * attention.head_dim
        for part in ("q_proj", "k_proj", "v_proj"):
            setattr(attention, part, nn.Linear(width, inner))
        attention.out_proj = nn.Linear(inner, width)
        attention.num_heads = heads
    neurons = _size(shape[f"{name}.feed_forward.neurons"])
    if not shape[f"{name}.feed_forward"]:
        layer.feed_forward = RemovedFeedForward()
    elif neurons == 0:
        layer.feed_forward = EmptyFeedForward(width)
    else:
        feed_forward.intermediate_dense = nn.Linear(width, neurons)
        feed_forward.output_dense = nn.Linear(neurons, width)
    if pre_norm:  # the norm before a sublayer has no other reader
        if not shape[f"{name}.attention"]:
            layer.layer_norm = nn.Identity()
        if not shape[f"{name}.feed_forward"]:
            layer.final_layer_norm = nn.Identity()


def shrink(base: Any, shape: dict[str, Any]) -> None:
    """Gives the modules of a freshly built encoder the sizes of `shape`; weights are to be loaded or drawn again."""
    _shrink_front_end(base, shape)
    encoder = base.encoder
    positional = encoder.pos_conv_embed
    if parametrize.is_parametrized(positional.conv):  # weight norm runs over the groups, so it is multiplied out
        parametrize.remove_parametrizations(positional.conv, "weight")
    encoder.pos_conv_embed = KeptGroupsPositionalConv(positional, shape["encoder.pos_conv_embed.groups"])
    for i, layer in enumerate(encoder.layers):
        _shrink_layer(layer, f"encoder.layers.{i}", shape, pre_norm=base.config.do_stable_layer_norm)


class _RaggedConfig:
    """Mixin: in config.json a sentence stands where stock classes expect `conv_dim`, so that they stop with it.

    They would load what fits and leave the rest at random. The sizes themselves are under the key `diminuendo`.
    """

    def to_json_string(self, *args: Any, **kwargs: Any) -> str:
        values = json.loads(super().to_json_string(*args, **kwargs))  # type: ignore[misc]
        if "diminuendo" in values:
            values["diminuendo"]["conv_dim"] = list(self.conv_dim)  # type: ignore[attr-defined]
            values["conv_dim"] = "compressed by diminuendo: load with trust_remote_code=True or diminuendo.load"
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        values = dict(config_dict)
        ours = dict(values.pop("diminuendo"))
        if "conv_dim" in ours:
            values["conv_dim"] = ours.pop("conv_dim")
        return super().from_dict({**values, "diminuendo": ours}, **kwargs)  # type: ignore[misc]


class _Ragged:
    """Mixin: builds the stock model, then shrinks it, then prepares it again as a model of the new sizes."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        shrink(getattr(self, self.base_model_prefix, self), config.diminuendo["shape"])  # type: ignore[attr-defined]
        self.post_init()  # type: ignore[attr-defined]

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # transformers reads this file for an attention that asks for its implementation; that of the stock class does.
        return True


class RaggedHubertConfig(_RaggedConfig, HubertConfig):
    model_type = "diminuendo_hubert"


class RaggedHubertModel(_Ragged, HubertModel):
    config_class = RaggedHubertConfig


class RaggedHubertForCTC(_Ragged, HubertForCTC):
    config_class = RaggedHubertConfig


class RaggedWav2Vec2Config(_RaggedConfig, Wav2Vec2Config):
    model_type = "diminuendo_wav2vec2"


class RaggedWav2Vec2Model(_Ragged, Wav2Vec2Model):
    config_class = RaggedWav2Vec2Config


class RaggedWav2Vec2ForCTC(_Ragged, Wav2Vec2ForCTC):
    config_class = RaggedWav2Vec2Config


class RaggedUniSpeechSatConfig(_RaggedConfig, UniSpeechSatConfig):
    model_type = "diminuendo_unispeech_sat"


class RaggedUniSpeechSatModel(_Ragged, UniSpeechSatModel):
    config_class = RaggedUniSpeechSatConfig


class RaggedUniSpeechSatForCTC(_Ragged, UniSpeechSatForCTC):
    config_class = RaggedUniSpeechSatConfig
