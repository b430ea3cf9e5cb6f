"""Wav2Vec2-BERT with a size of its own for every layer, its queries multiplied with every distance once."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Wav2Vec2BertConfig, Wav2Vec2BertForCTC, Wav2Vec2BertModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import Wav2Vec2BertSelfAttention, eager_attention_forward

from .ragged import Ragged, RaggedConfig, Shape
from .ragged_wav2vec2_conformer import residual, shrink_encoder


class NearAttention(Wav2Vec2BertSelfAttention):
    """Equal to the stock attention with positions "relative_key", of whose distances few differ (73 in the released).

    The stock one looks up an embedding for every query and key, and multiplies the queries with all of those.
    """

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        relative_position_embeddings: None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        heads = (*hidden_states.shape[:2], -1, self.head_size)
        parts = (self.linear_q, self.linear_k, self.linear_v)
        query, key, value = (part(hidden_states).view(heads).transpose(1, 2) for part in parts)
        left, right = self.left_max_position_embeddings, self.right_max_position_embeddings
        place = torch.arange(hidden_states.shape[1], device=query.device)
        distance = (place - place[:, None]).clamp(-left, right) + left
        biases = F.linear(query, self.distance_embedding.weight) * self.scaling
        kind = self.config._attn_implementation
        mixed, weights = ALL_ATTENTION_FUNCTIONS.get_interface(kind, eager_attention_forward)(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.dropout.p if self.training else 0.0,
            scaling=self.scaling,
            position_bias=biases.gather(-1, distance.expand(*query.shape[:2], -1, -1)),
            **kwargs,
        )
        return self.linear_out(mixed.flatten(2)), weights


def attend_near(encoder: Any) -> None:
    """Makes the attentions of the encoder's layers ours where they are told of positions by distances."""
    for layer in encoder.layers:
        if hasattr(layer.self_attn, "distance_embedding"):
            layer.self_attn.__class__ = NearAttention


class RaggedWav2Vec2BertLayers(Ragged):
    residual = staticmethod(residual)

    def shrink(self, shape: Shape) -> None:
        encoder = self.encoder_inside.encoder
        shrink_encoder(encoder, shape, "depthwise_layer_norm")
        attend_near(encoder)


class RaggedWav2Vec2BertConfig(RaggedConfig, Wav2Vec2BertConfig):
    model_type = "diminuendo_wav2vec2_bert"


class RaggedWav2Vec2BertModel(RaggedWav2Vec2BertLayers, Wav2Vec2BertModel):
    config_class = RaggedWav2Vec2BertConfig


class RaggedWav2Vec2BertForCTC(RaggedWav2Vec2BertLayers, Wav2Vec2BertForCTC):
    config_class = RaggedWav2Vec2BertConfig
