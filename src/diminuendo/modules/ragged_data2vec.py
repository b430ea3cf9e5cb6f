"""Data2Vec audio with a size of its own for every layer."""

from typing import Any

from torch import Tensor, nn
from transformers import Data2VecAudioConfig, Data2VecAudioForCTC, Data2VecAudioModel

from .padding import mask_padding
from .ragged import Ragged, RaggedConfig, Shape, shrink_feed_forward
from .ragged_wav2vec2 import KeptGroups, residual, shrink_attention, shrink_front_end
from .residual import Stream, stream_of

CONVOLUTIONS = r"pos_conv_embed\.layers\.\d+\.conv"
"""Those of positions: all but the first read what the norm before them wrote into padding."""


class KeptGroupsPositionalStack(KeptGroups):
    """The positional convolutions with some of their groups, the same ones in all; norms run over their channels.

    The last norm has a weight, unlike the stock one: there the gates were.
    """

    def __init__(self, stock: nn.Module, kept: list[int], stream: Stream) -> None:
        layers: Any = stock.layers
        super().__init__(layers[0].conv.groups, kept, stream)
        self.layers = layers = layers if kept else nn.ModuleList()
        for layer in layers:
            conv, width = layer.conv, layer.conv.out_channels // self.num_groups * len(kept)
            layer.conv = nn.Conv1d(width, width, conv.kernel_size[0], padding=conv.padding[0], groups=len(kept))
            weighted = layer is layers[-1]
            layer.layer_norm = nn.LayerNorm(width, layer.layer_norm.eps, elementwise_affine=weighted, bias=False)

    def embed(self, read: Tensor) -> Tensor:
        for layer in self.layers:
            read = layer(read)
        return read


class RaggedData2VecAudioLayers(Ragged):
    residual = staticmethod(residual)

    def shrink(self, shape: Shape) -> None:
        base = self.encoder_inside
        shrink_front_end(base, shape)
        groups, stream = shape["encoder.pos_conv_embed.groups"], stream_of(shape, base.config)
        base.encoder.pos_conv_embed = KeptGroupsPositionalStack(base.encoder.pos_conv_embed, groups, stream)
        for i, layer in enumerate(base.encoder.layers):
            name = f"encoder.layers.{i}"
            shrink_attention(layer, name, shape)
            shrink_feed_forward(layer, "feed_forward", name, shape, "intermediate_dense", "output_dense")
        mask_padding(base.encoder, CONVOLUTIONS)


class RaggedData2VecAudioConfig(RaggedConfig, Data2VecAudioConfig):
    model_type = "diminuendo_data2vec_audio"
    sentinel = "conv_dim"


class RaggedData2VecAudioModel(RaggedData2VecAudioLayers, Data2VecAudioModel):
    config_class = RaggedData2VecAudioConfig


class RaggedData2VecAudioForCTC(RaggedData2VecAudioLayers, Data2VecAudioForCTC):
    config_class = RaggedData2VecAudioConfig
