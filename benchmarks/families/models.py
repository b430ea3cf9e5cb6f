"""The models that are measured: published sizes, random weights.

`changed` is what differs from transformers' defaults, which are the published configuration of the smallest of most
families. Dropouts, masking and heads that pretraining alone needs are of no account here.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

from benchmarks.step.ours import SIZES
from diminuendo.families import Model

LARGE = SIZES["large"]


@dataclass(frozen=True)
class Known:
    """config, model: names in transformers. changed: values of the configuration; of "encoder_config", inside of it.

    width: whether the residual stream becomes narrower too.
    """

    title: str
    config: str
    model: str
    changed: dict[str, Any] = field(default_factory=dict)
    width: bool = False

    def make(self) -> Model:
        torch.manual_seed(0)
        return getattr(transformers, self.model)(getattr(transformers, self.config)(**self.changed)).eval()


MODELS = {
    "hubert-base": Known("HuBERT Base", "HubertConfig", "HubertModel"),
    "hubert-large": Known("HuBERT Large", "HubertConfig", "HubertModel", LARGE),
    "wavlm-base-plus": Known("WavLM Base+", "WavLMConfig", "WavLMModel"),
    "wavlm-large": Known("WavLM Large", "WavLMConfig", "WavLMModel", LARGE | {"conv_bias": False}),
    "data2vec-base": Known("data2vec-audio Base", "Data2VecAudioConfig", "Data2VecAudioModel"),
    "conformer-large": Known(
        "wav2vec2-conformer Large, rel-pos",
        "Wav2Vec2ConformerConfig",
        "Wav2Vec2ConformerModel",
        {key: value for key, value in LARGE.items() if key != "do_stable_layer_norm"} | {"hidden_act": "swish"},
    ),
    "wav2vec2-bert": Known("wav2vec2-BERT", "Wav2Vec2BertConfig", "Wav2Vec2BertModel"),
    "parakeet-ctc": Known("Parakeet 0.6 B, CTC", "ParakeetCTCConfig", "ParakeetForCTC"),
    "parakeet-tdt": Known(
        "Parakeet 0.6 B, TDT", "ParakeetTDTConfig", "ParakeetForTDT", {"encoder_config": {"num_mel_bins": 128}}
    ),
    "nemotron": Known("streaming Nemotron 0.6 B", "NemotronAsrStreamingConfig", "NemotronAsrStreamingForRNNT"),
    "hubert-base-width": Known("HuBERT Base, the width too", "HubertConfig", "HubertModel", width=True),
    "parakeet-ctc-width": Known("Parakeet CTC, the width too", "ParakeetCTCConfig", "ParakeetForCTC", width=True),
}
