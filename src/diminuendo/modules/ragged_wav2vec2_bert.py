"""Wav2Vec2-BERT with a size of its own for every layer."""

from transformers import Wav2Vec2BertConfig, Wav2Vec2BertForCTC, Wav2Vec2BertModel

from .ragged import Ragged, RaggedConfig, Shape
from .ragged_wav2vec2_conformer import residual, shrink_encoder


class _Ragged(Ragged):
    residual = staticmethod(residual)

    def shrink(self, shape: Shape) -> None:
        shrink_encoder(self.encoder_inside.encoder, shape, "depthwise_layer_norm")


class RaggedWav2Vec2BertConfig(RaggedConfig, Wav2Vec2BertConfig):
    model_type = "diminuendo_wav2vec2_bert"


class RaggedWav2Vec2BertModel(_Ragged, Wav2Vec2BertModel):
    config_class = RaggedWav2Vec2BertConfig


class RaggedWav2Vec2BertForCTC(_Ragged, Wav2Vec2BertForCTC):
    config_class = RaggedWav2Vec2BertConfig
