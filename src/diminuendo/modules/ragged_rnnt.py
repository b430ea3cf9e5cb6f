"""A transducer around every encoder that transformers has none for: predictor and joint network as Parakeet has them.

The configuration is the encoder's, with what the head needs: `vocab_size`, `blank_token_id`, `decoder_hidden_size`,
`num_decoder_layers`, `max_symbols_per_step`, `predictor`. Needs a transformers that has Parakeet's RNN-T.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Data2VecAudioModel,
    HubertModel,
    UniSpeechSatModel,
    Wav2Vec2BertModel,
    Wav2Vec2ConformerModel,
    Wav2Vec2Model,
    WavLMModel,
)
from transformers.generation import GenerationMixin
from transformers.models.data2vec.modeling_data2vec_audio import Data2VecAudioPreTrainedModel
from transformers.models.hubert.modeling_hubert import HubertPreTrainedModel
from transformers.models.parakeet.generation_parakeet import ParakeetRNNTGenerationMixin
from transformers.models.parakeet.modeling_parakeet import ParakeetRNNTDecoder, ParakeetRNNTJointNetwork
from transformers.models.unispeech_sat.modeling_unispeech_sat import UniSpeechSatPreTrainedModel
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2PreTrainedModel
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import Wav2Vec2BertPreTrainedModel
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import Wav2Vec2ConformerPreTrainedModel
from transformers.models.wavlm.modeling_wavlm import WavLMPreTrainedModel
from transformers.utils import ModelOutput

from .ragged_data2vec import RaggedData2VecAudioConfig, RaggedData2VecAudioLayers
from .ragged_wav2vec2 import (
    RaggedHubertConfig,
    RaggedUniSpeechSatConfig,
    RaggedWav2Vec2Config,
    RaggedWav2Vec2Layers,
)
from .ragged_wav2vec2_bert import RaggedWav2Vec2BertConfig, RaggedWav2Vec2BertLayers
from .ragged_wav2vec2_conformer import RaggedWav2Vec2ConformerConfig, RaggedWav2Vec2ConformerLayers
from .ragged_wavlm import RaggedWavLMConfig, RaggedWavLMLayers
from .transducer import RaggedTransducer


@dataclass
class TransducerOutput(ModelOutput):
    """logits: [batch, frames, labels + 1, vocabulary]; pooler_output: frames as the joint network reads them."""

    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    attention_mask: Tensor | None = None
    decoder_cache: Any = None


class ForRNNT(ParakeetRNNTGenerationMixin):
    """Mixin before a family's PreTrainedModel: its encoder, and the head of a transducer."""

    encoder_class: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        setattr(self, self.base_model_prefix, self.encoder_class(config))
        width = config.output_hidden_size if getattr(config, "add_adapter", False) else config.hidden_size
        self.encoder_projector = nn.Linear(width, config.decoder_hidden_size)
        self.decoder = ParakeetRNNTDecoder(config)
        self.joint = ParakeetRNNTJointNetwork(config)
        self.joint.activation = nn.ReLU()  # `hidden_act` is the encoder's
        self.max_symbols_per_step = config.max_symbols_per_step
        self.post_init()

    def get_audio_features(self, attention_mask: Tensor | None = None, **inputs: Any) -> TransducerOutput:
        """The encoder's frames, and as the joint network reads them; with a mask of the input that of the frames.

        The input may be called `input_features` whatever the encoder calls it: generation does so.
        """
        inputs.pop("output_attention_mask", None)
        if "input_features" in inputs:
            inputs[self.main_input_name] = inputs.pop("input_features")
        encoder = getattr(self, self.base_model_prefix)
        hidden = encoder(**inputs, attention_mask=attention_mask).last_hidden_state
        mask = None
        if attention_mask is not None:
            mask = self._get_feature_vector_attention_mask(hidden.shape[1], attention_mask)
        return TransducerOutput(
            last_hidden_state=hidden, pooler_output=self.encoder_projector(hidden), attention_mask=mask
        )

    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_cache: Any = None,
        encoder_outputs: Any = None,
        input_features: Tensor | None = None,
        **_: Any,
    ) -> TransducerOutput:
        """Logits of every frame and label. decoder_input_ids: blank, then the labels, [batch, labels + 1]."""
        if encoder_outputs is None:
            read = input_values if input_features is None else input_features
            encoder_outputs = self.get_audio_features(attention_mask, input_features=read)
        predicted = self.decoder(decoder_input_ids, cache=decoder_cache)
        logits = self.joint(
            encoder_hidden_states=encoder_outputs.pooler_output[:, :, None],
            decoder_hidden_states=predicted[:, None],
        )
        return TransducerOutput(
            logits=logits.squeeze(2),
            last_hidden_state=encoder_outputs.last_hidden_state,
            pooler_output=encoder_outputs.pooler_output,
            attention_mask=encoder_outputs.attention_mask,
            decoder_cache=decoder_cache,
        )

    def _prepare_generated_length(
        self,
        generation_config: Any,
        has_default_max_length: bool,
        has_default_min_length: bool,
        model_input_name: str,
        input_ids_length: int,
        inputs_tensor: Tensor,
    ) -> Any:
        if has_default_max_length and generation_config.max_new_tokens is None:
            frames = self._get_feat_extract_output_lengths(torch.tensor(inputs_tensor.shape[1]))
            generation_config.max_length = self.max_symbols_per_step * int(frames)
            has_default_max_length = False
        return GenerationMixin._prepare_generated_length(
            self,
            generation_config,
            has_default_max_length,
            has_default_min_length,
            model_input_name,
            input_ids_length,
            inputs_tensor,
        )


class RaggedHubertForRNNT(RaggedTransducer, RaggedWav2Vec2Layers, ForRNNT, HubertPreTrainedModel, GenerationMixin):
    config_class = RaggedHubertConfig
    encoder_class = HubertModel


class RaggedWav2Vec2ForRNNT(RaggedTransducer, RaggedWav2Vec2Layers, ForRNNT, Wav2Vec2PreTrainedModel, GenerationMixin):
    config_class = RaggedWav2Vec2Config
    encoder_class = Wav2Vec2Model


class RaggedUniSpeechSatForRNNT(
    RaggedTransducer, RaggedWav2Vec2Layers, ForRNNT, UniSpeechSatPreTrainedModel, GenerationMixin
):
    config_class = RaggedUniSpeechSatConfig
    encoder_class = UniSpeechSatModel


class RaggedWavLMForRNNT(RaggedTransducer, RaggedWavLMLayers, ForRNNT, WavLMPreTrainedModel, GenerationMixin):
    config_class = RaggedWavLMConfig
    encoder_class = WavLMModel


class RaggedData2VecAudioForRNNT(
    RaggedTransducer, RaggedData2VecAudioLayers, ForRNNT, Data2VecAudioPreTrainedModel, GenerationMixin
):
    config_class = RaggedData2VecAudioConfig
    encoder_class = Data2VecAudioModel


class RaggedWav2Vec2ConformerForRNNT(
    RaggedTransducer, RaggedWav2Vec2ConformerLayers, ForRNNT, Wav2Vec2ConformerPreTrainedModel, GenerationMixin
):
    config_class = RaggedWav2Vec2ConformerConfig
    encoder_class = Wav2Vec2ConformerModel


class RaggedWav2Vec2BertForRNNT(
    RaggedTransducer, RaggedWav2Vec2BertLayers, ForRNNT, Wav2Vec2BertPreTrainedModel, GenerationMixin
):
    config_class = RaggedWav2Vec2BertConfig
    encoder_class = Wav2Vec2BertModel
