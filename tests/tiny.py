"""Tiny models with random weights, every family in both styles, and tiny runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioForCTC,
    Data2VecAudioModel,
    HubertConfig,
    HubertForCTC,
    HubertModel,
    NemotronAsrStreamingConfig,
    NemotronAsrStreamingEncoder,
    NemotronAsrStreamingEncoderConfig,
    NemotronAsrStreamingFeatureExtractor,
    NemotronAsrStreamingForRNNT,
    ParakeetCTCConfig,
    ParakeetEncoder,
    ParakeetEncoderConfig,
    ParakeetFeatureExtractor,
    ParakeetForCTC,
    ParakeetForRNNT,
    ParakeetForTDT,
    ParakeetRNNTConfig,
    ParakeetTDTConfig,
    SeamlessM4TFeatureExtractor,
    UniSpeechSatConfig,
    UniSpeechSatForCTC,
    UniSpeechSatModel,
    Wav2Vec2BertConfig,
    Wav2Vec2BertForCTC,
    Wav2Vec2BertModel,
    Wav2Vec2Config,
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerForCTC,
    Wav2Vec2ConformerModel,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMForCTC,
    WavLMModel,
)

from diminuendo import api
from diminuendo.export.huggingface import save
from diminuendo.families import family_of, model_inputs
from diminuendo.families.filter_bank_input import hears_filter_banks
from diminuendo.families.filter_banks import filter_bank_extractor
from diminuendo.families.recogniser import with_head
from diminuendo.training.config import LoopConfig
from diminuendo.training.configurations import read_configuration
from diminuendo.training.loop import Loop
from diminuendo.training.own_prediction import encoder_of
from diminuendo.training.own_prediction import extractor_of as fresh_extractor

SETTINGS = {"steps": 12, "seconds_per_batch": 3.0, "round_to": 1}
QUIET = LoopConfig(device="cpu", quiet=True)

CLASSES: dict[str, tuple[Any, Any, Any]] = {
    "hubert": (HubertConfig, HubertModel, HubertForCTC),
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model, Wav2Vec2ForCTC),
    "unispeech-sat": (UniSpeechSatConfig, UniSpeechSatModel, UniSpeechSatForCTC),
    "wavlm": (WavLMConfig, WavLMModel, WavLMForCTC),
    "data2vec-audio": (Data2VecAudioConfig, Data2VecAudioModel, Data2VecAudioForCTC),
    "wav2vec2-conformer": (Wav2Vec2ConformerConfig, Wav2Vec2ConformerModel, Wav2Vec2ConformerForCTC),
    "wav2vec2-bert": (Wav2Vec2BertConfig, Wav2Vec2BertModel, Wav2Vec2BertForCTC),
}
BASE = {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
TRANSFORMERS = ("hubert", "wav2vec2", "unispeech-sat", "wavlm")
STYLES: dict[str, dict[str, dict[str, Any]]] = {
    **{family: {"base": BASE, "large": LARGE} for family in TRANSFORMERS},
    "data2vec-audio": {"stacked": {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 8, "conv_bias": True}},
    "wav2vec2-conformer": {
        "base": {"feat_extract_norm": "group", "conv_bias": False, "position_embeddings_type": "relative"},
        "large": {"feat_extract_norm": "layer", "conv_bias": True, "position_embeddings_type": "rotary"},
    },
    "wav2vec2-bert": {
        "base": {"position_embeddings_type": "relative_key", "left_max_position_embeddings": 6},
        "large": {"position_embeddings_type": "relative"},
    },
}
# Of these a style is an architecture, and the encoder's configuration is inside of a recogniser's.
FAST_CONFORMERS: dict[str, dict[str, tuple[Any, Any]]] = {
    "parakeet": {
        "encoder": (ParakeetEncoderConfig, ParakeetEncoder),
        "ctc": (ParakeetCTCConfig, ParakeetForCTC),
        "rnnt": (ParakeetRNNTConfig, ParakeetForRNNT),
        "tdt": (ParakeetTDTConfig, ParakeetForTDT),
    },
    "nemotron": {
        "encoder": (NemotronAsrStreamingEncoderConfig, NemotronAsrStreamingEncoder),
        "rnnt": (NemotronAsrStreamingConfig, NemotronAsrStreamingForRNNT),
    },
}
STYLES |= {family: {style: {} for style in styles} for family, styles in FAST_CONFORMERS.items()}
TRANSFORMER_VARIANTS = [(family, style) for family in TRANSFORMERS for style in STYLES[family]]
VARIANTS = [(family, style) for family, styles in STYLES.items() for style in styles]


def tiny_config(family: str = "hubert", style: str = "base", **changes: Any) -> Any:
    values: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "vocab_size": 11,
    }
    if family != "wav2vec2-bert":
        values |= {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4}
    if family.startswith("wav2vec2-"):
        values |= {"conv_depthwise_kernel_size": 5}
    return CLASSES[family][0](**values | STYLES[family][style] | changes)


def fast_conformer(family: str, style: str, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "subsampling_conv_channels": 12,
        "num_mel_bins": 32,
        "conv_kernel_size": 5,
    }
    if family == "nemotron":
        values |= {"sliding_window": 13, "default_num_lookahead_tokens": 3}
    config, cls = FAST_CONFORMERS[family][style]
    if style == "encoder":
        return cls(config(**values | changes))
    head = {"ctc": {"pad_token_id": 10}}.get(style, {"decoder_hidden_size": 24, "blank_token_id": 10})
    return cls(config(encoder_config=values | changes, vocab_size=11, **head))


def tiny_model(family: str = "hubert", style: str = "base", *, ctc: bool = False, seed: int = 0, **changes: Any) -> Any:
    """Weights large enough, biases and norms uneven enough, that an error anywhere shows in the output."""
    torch.manual_seed(seed)
    if family in FAST_CONFORMERS:
        recogniser = "ctc" if family == "parakeet" else "rnnt"
        model = fast_conformer(family, recogniser if ctc else style, **changes).eval()
    else:
        model = CLASSES[family][2 if ctc else 1](tiny_config(family, style, **changes)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or name.endswith("bias"):
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
            elif parameter.dim() == 2:
                parameter *= 5  # else frames are nearly alike, and attention is, whatever it looks for
            elif parameter.dim() == 4:
                parameter *= 20
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer += 0.3 * torch.rand(buffer.shape, generator=generator)
    family_of(model).mask_padding(model)  # as of a model that is loaded
    return model


TRANSDUCERS = [
    ("parakeet", "rnnt"),
    ("parakeet", "tdt"),
    ("nemotron", "rnnt"),
    ("parakeet", "stateless"),
    ("nemotron", "stateless"),
]


def tiny_transducer(family: str, style: str = "rnnt") -> Any:
    """As `tiny_model`; of the style "stateless" one with a stateless predictor."""
    if style != "stateless":
        return tiny_model(family, style)
    return with_head(tiny_model(family, "encoder"), "rnnt", 10, width=24, predictor="stateless")


def micro_encoder(name: str, folder: Path) -> Path:
    """The encoder of a named micro configuration, of fresh weights, saved in the folder under its name."""
    torch.manual_seed(0)
    config = read_configuration(f"micro-{name}")
    save(encoder_of(config), fresh_extractor(config), folder / name)
    return folder / name


def extractor_of(model: Any) -> Any:
    if model.main_input_name == "input_values":
        return Wav2Vec2FeatureExtractor(do_normalize=True)
    if hears_filter_banks(model):
        return filter_bank_extractor()
    model_type = model.config.model_type
    if "nemotron" in model_type:
        return NemotronAsrStreamingFeatureExtractor(feature_size=32)
    return ParakeetFeatureExtractor(feature_size=32) if "parakeet" in model_type else SeamlessM4TFeatureExtractor()


def inputs_of(model: Any) -> dict[str, torch.Tensor]:
    """What the model reads of `audio()`, as it is or as its extractor has it."""
    if model.main_input_name == "input_values":
        return {"input_values": audio()}
    return model_inputs(extractor_of(model), audio(), torch.tensor([8000, 8000]))


def forward_inputs(model: Any) -> dict[str, torch.Tensor]:
    """What a whole forward pass takes: a transducer is told labels too."""
    labels = {"decoder_input_ids": torch.tensor([[10, 1, 2, 3], [10, 4, 5, 5]])} if hasattr(model, "joint") else {}
    return inputs_of(model) | labels


def output_of(model: Any) -> torch.Tensor:
    """A recogniser's logits, an encoder's last states."""
    with torch.inference_mode():
        found = model(**forward_inputs(model))
    output: torch.Tensor = found.logits if "logits" in found else found.last_hidden_state
    return output


def audio(batch: int = 2, samples: int = 8000, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, samples, generator=torch.Generator().manual_seed(seed))


def compress(model: Path, data: Path, out: Path, **options: object) -> dict[str, object]:
    return api.compress_to_result(model, data, out, **{"keep": "params=0.5", "loop": QUIET, **SETTINGS, **options})


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Ctrl-C in the step of that number, counted through all stages."""
    steps = 0

    def counting(self: object, stop: bool, due: bool) -> list[bool]:
        nonlocal steps
        steps += 1
        return [steps == at, due]

    monkeypatch.setattr(Loop, "_anyone", counting)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()
