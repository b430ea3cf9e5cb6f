"""Parakeet (FastConformer) for CTC, RNN-T and TDT with a size of its own for every layer.

With `output_attentions` there are maps of those layers alone that have attention.
"""

from typing import Any

import torch
from torch import nn
from transformers import (
    ParakeetCTCConfig,
    ParakeetEncoder,
    ParakeetEncoderConfig,
    ParakeetForCTC,
    ParakeetForRNNT,
    ParakeetForTDT,
    ParakeetRNNTConfig,
    ParakeetTDTConfig,
)

from .ragged import (
    EmptyAttention,
    Ragged,
    RaggedConfig,
    RemovedAttention,
    Shape,
    resize,
    shrink_feed_forward,
)
from .ragged_conformer import drop_norms_before, shrink_convolution
from .residual import Residual
from .transducer import RaggedTransducer


def residual(config: Any) -> Residual:
    layer = r"layers\.\d+\."
    return Residual(
        source=r"subsampling\.linear",
        reads=layer + r"(feed_forward[12]\.linear1|self_attn\.[qkv]_proj|conv\.pointwise_conv1)",
        writes=layer + r"(feed_forward[12]\.linear2|self_attn\.o_proj|conv\.pointwise_conv2)",
        norms=layer + r"norm_\w+",
    )


class AttentionView:
    """The configuration as one attention reads it: there are as many heads as it has."""

    def __init__(self, config: Any, attention: nn.Module) -> None:
        self._seen, self._by = config, attention

    def __getattr__(self, name: str) -> Any:
        if name in ("_seen", "_by"):  # while a copy is being made
            raise AttributeError(name)
        return getattr(self._seen, name)

    @property
    def num_attention_heads(self) -> int:
        return len(self._by.bias_u)  # type: ignore[arg-type]


def count_own_heads(encoder: Any) -> None:
    """Lets every attention have a number of heads of its own, in place."""
    for layer in encoder.layers:
        attention = layer.self_attn
        if hasattr(attention, "bias_u") and not isinstance(attention.config, AttentionView):
            attention.config = AttentionView(attention.config, attention)


def shrink_attention(layer: Any, name: str, shape: Shape) -> None:
    attention, heads = layer.self_attn, shape[f"{name}.self_attn.heads"]
    output = attention.o_proj
    if not shape[f"{name}.self_attn"] or (heads == 0 and output.bias is None):
        layer.self_attn = RemovedAttention()
    elif heads == 0:
        layer.self_attn = EmptyAttention("o_proj", output.out_features)
    else:
        for part in ("q_proj", "k_proj", "v_proj", "relative_k_proj"):
            resize(getattr(attention, part), writes=heads * attention.head_dim)
        resize(output, reads=heads * attention.head_dim)
        attention.bias_u = nn.Parameter(torch.zeros(heads, attention.head_dim))
        attention.bias_v = nn.Parameter(torch.zeros(heads, attention.head_dim))


NORMS = {
    "feed_forward1": "norm_feed_forward1",
    "self_attn": "norm_self_att",
    "conv": "norm_conv",
    "feed_forward2": "norm_feed_forward2",
}


def shrink_encoder(encoder: Any, shape: Shape) -> None:
    """The layers; not the subsampling in front of them."""
    for i, layer in enumerate(encoder.layers):
        name = f"layers.{i}"
        shrink_feed_forward(layer, "feed_forward1", name, shape, "linear1", "linear2")
        shrink_attention(layer, name, shape)
        shrink_convolution(layer, "conv", name, shape, "norm")
        shrink_feed_forward(layer, "feed_forward2", name, shape, "linear1", "linear2")
        drop_norms_before(layer, name, shape, NORMS)
    count_own_heads(encoder)


def _shrink_subsampling(subsampling: Any, shape: Shape) -> None:
    convolutions = [layer for layer in subsampling.layers if isinstance(layer, nn.Conv2d)]
    bands = subsampling.linear.in_features // convolutions[-1].out_channels
    read = shape["subsampling.0.channels"]
    resize(convolutions[0], writes=read)
    for i, (depthwise, pointwise) in enumerate(zip(convolutions[1::2], convolutions[2::2], strict=True), start=1):
        resize(depthwise, writes=read)
        resize(pointwise, reads=read, writes=shape[f"subsampling.{i}.channels"])
        read = shape[f"subsampling.{i}.channels"]
    resize(subsampling.linear, reads=read * bands)


class RaggedParakeetLayers(Ragged):
    residual = staticmethod(residual)

    def shrink(self, shape: Shape) -> None:
        _shrink_subsampling(self.encoder_inside.subsampling, shape)
        shrink_encoder(self.encoder_inside, shape)

    @property
    def encoder_inside(self) -> Any:
        return getattr(self, "encoder", self)


class RaggedParakeetEncoderConfig(RaggedConfig, ParakeetEncoderConfig):
    model_type = "diminuendo_parakeet_encoder"


class RaggedParakeetEncoder(RaggedParakeetLayers, ParakeetEncoder):
    config_class = RaggedParakeetEncoderConfig
    config: RaggedParakeetEncoderConfig


class RaggedParakeetCTCConfig(RaggedConfig, ParakeetCTCConfig):
    model_type = "diminuendo_parakeet_ctc"
    sentinel = "ctc_zero_infinity"


class RaggedParakeetForCTC(RaggedParakeetLayers, ParakeetForCTC):
    config_class = RaggedParakeetCTCConfig
    config: RaggedParakeetCTCConfig


class RaggedParakeetRNNTConfig(RaggedConfig, ParakeetRNNTConfig):
    model_type = "diminuendo_parakeet_rnnt"
    sentinel = "decoder_hidden_size"


class RaggedParakeetForRNNT(RaggedTransducer, RaggedParakeetLayers, ParakeetForRNNT):
    config_class = RaggedParakeetRNNTConfig
    config: RaggedParakeetRNNTConfig


class RaggedParakeetTDTConfig(RaggedConfig, ParakeetTDTConfig):
    model_type = "diminuendo_parakeet_tdt"
    sentinel = "decoder_hidden_size"


class RaggedParakeetForTDT(RaggedTransducer, RaggedParakeetLayers, ParakeetForTDT):
    config_class = RaggedParakeetTDTConfig
    config: RaggedParakeetTDTConfig
