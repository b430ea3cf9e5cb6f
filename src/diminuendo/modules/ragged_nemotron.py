"""Streaming Nemotron (a causal FastConformer with caches, RNN-T) with a size of its own for every layer.

Its caches take their sizes from the layers: keys and values from what attention makes, convolutions' left contexts from
their channels. Attentions are numbered anew, since a cache counts its frames by the first one.
"""

from typing import Any, ClassVar

from transformers import (
    NemotronAsrStreamingConfig,
    NemotronAsrStreamingEncoder,
    NemotronAsrStreamingEncoderConfig,
    NemotronAsrStreamingForRNNT,
    ParakeetCTCConfig,
    ParakeetForCTC,
)
from transformers.models.nemotron_asr_streaming.modeling_nemotron_asr_streaming import (
    NemotronAsrStreamingPreTrainedModel,
)

from .ragged import Ragged, RaggedConfig, Shape, resize
from .ragged_parakeet import residual, shrink_encoder
from .transducer import RaggedTransducer


def _shrink_subsampling(subsampling: Any, shape: Shape) -> None:
    bands = subsampling.linear.in_features // subsampling.conv_in.out_channels
    read = shape["subsampling.0.channels"]
    resize(subsampling.conv_in, writes=read)
    for i, layer in enumerate(subsampling.layers, start=1):
        resize(layer.depthwise_conv, writes=read)
        resize(layer.pointwise_conv, reads=read, writes=shape[f"subsampling.{i}.channels"])
        read = shape[f"subsampling.{i}.channels"]
    resize(subsampling.linear, reads=read * bands)


def number_attentions(encoder: Any) -> None:
    """Gives those attentions that there are the numbers 0, 1, 2..., in place."""
    attentions = [layer.self_attn for layer in encoder.layers if hasattr(layer.self_attn, "layer_idx")]
    for i, attention in enumerate(attentions):
        attention.layer_idx = i


class RaggedNemotronLayers(Ragged):
    residual = staticmethod(residual)

    def shrink(self, shape: Shape) -> None:
        encoder = self.encoder_inside
        _shrink_subsampling(encoder.subsampling, shape)
        shrink_encoder(encoder, shape)
        number_attentions(encoder)

    @property
    def encoder_inside(self) -> Any:
        return getattr(self, "encoder", self)


class RaggedNemotronEncoderConfig(RaggedConfig, NemotronAsrStreamingEncoderConfig):
    model_type = "diminuendo_nemotron_asr_streaming_encoder"


class RaggedNemotronEncoder(RaggedNemotronLayers, NemotronAsrStreamingEncoder):
    config_class = RaggedNemotronEncoderConfig
    config: RaggedNemotronEncoderConfig


class RaggedNemotronConfig(RaggedConfig, NemotronAsrStreamingConfig):
    model_type = "diminuendo_nemotron_asr_streaming"
    sentinel = "decoder_hidden_size"


class RaggedNemotronForRNNT(RaggedTransducer, RaggedNemotronLayers, NemotronAsrStreamingForRNNT):
    config_class = RaggedNemotronConfig
    config: RaggedNemotronConfig


class NemotronForCTC(NemotronAsrStreamingPreTrainedModel, ParakeetForCTC):
    """A streaming encoder with the head of Parakeet's CTC recogniser; transformers has none."""


class RaggedNemotronCTCConfig(RaggedConfig, ParakeetCTCConfig):
    model_type = "diminuendo_nemotron_asr_streaming_ctc"
    sub_configs_defaults: ClassVar = {"encoder_config": NemotronAsrStreamingEncoderConfig}
    sentinel = "ctc_zero_infinity"


class RaggedNemotronForCTC(RaggedNemotronLayers, NemotronForCTC):
    config_class = RaggedNemotronCTCConfig
    config: RaggedNemotronCTCConfig
