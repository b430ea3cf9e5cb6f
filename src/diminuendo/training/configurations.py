"""Small encoders to pretrain where there is no checkpoint to start from, as plain data."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from diminuendo.errors import UserError
from diminuendo.families import FAMILIES

_BASE = {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False}
_LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
# Small models on little audio underfit; and LayerDrop changes how many hidden states a model in training returns.
_NO_DROPOUT = {
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
}
_TINY = {
    "hidden_size": 192,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "intermediate_size": 768,
    "conv_dim": [64] * 7,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 8,
    **_NO_DROPOUT,
}
_DEMO = {**_TINY, "hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 512, "conv_dim": [48] * 7}
_MICRO = {
    **_TINY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}

# Streaming Nemotron's is the same with transformers' defaults for what it sees: 70 frames (of 80 ms) back, in chunks of
# 14 unless told otherwise, and causal convolutions.
_TINY_FAST_CONFORMER = {
    "hidden_size": 144,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 576,
    "subsampling_factor": 8,
    "subsampling_conv_channels": 64,
    "num_mel_bins": 80,
    "dropout": 0.0,
    "dropout_positions": 0.0,
    "activation_dropout": 0.0,
    "attention_dropout": 0.0,
    "layerdrop": 0.0,
}
_TINY_BERT = {
    **_NO_DROPOUT,
    "hidden_size": 144,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 576,
    "conformer_conv_dropout": 0.0,
    "conv_depthwise_kernel_size": 15,
    "mask_time_prob": 0.0,  # masks are drawn over features, and no embedding stands for them
}
# Few channels where there are many frames: at every depth of the front end it is about as much to compute.
_TINY_WAV2VEC2_CONFORMER = {
    **_NO_DROPOUT,
    **_LARGE,
    "hidden_size": 144,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "intermediate_size": 576,
    "conv_dim": [16, 32, 48, 64, 96, 128, 128],
    "conv_depthwise_kernel_size": 15,
    "conformer_conv_dropout": 0.0,
    "position_embeddings_type": "relative",
    "num_conv_pos_embeddings": 1,  # transformers has the convolution and never calls it
}
_MICRO_SIZE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
_MICRO_FAST_CONFORMER = {**_TINY_FAST_CONFORMER, **_MICRO_SIZE, "subsampling_conv_channels": 8, "num_mel_bins": 16}

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "tiny-hubert": {"model_type": "hubert", **_TINY, **_BASE},
    "tiny-wav2vec2": {"model_type": "wav2vec2", **_TINY, **_BASE},
    "tiny-unispeech-sat": {"model_type": "unispeech-sat", **_TINY, **_BASE},
    "tiny-hubert-large": {"model_type": "hubert", **_TINY, **_LARGE},
    "demo-hubert": {"model_type": "hubert", **_DEMO, **_BASE},
    "micro-hubert": {"model_type": "hubert", **_MICRO, **_BASE},
    "micro-hubert-large": {"model_type": "hubert", **_MICRO, **_LARGE},
    "tiny-parakeet": {"model_type": "parakeet_encoder", **_TINY_FAST_CONFORMER},
    # For labels that are shorter than its frames of 80 ms, like phones, which CTC has one a frame of at most.
    "tiny-parakeet-40ms": {"model_type": "parakeet_encoder", **_TINY_FAST_CONFORMER, "subsampling_factor": 4},
    "tiny-nemotron": {"model_type": "nemotron_asr_streaming_encoder", **_TINY_FAST_CONFORMER},
    "tiny-wav2vec2-bert": {"model_type": "wav2vec2-bert", **_TINY_BERT},
    "tiny-wav2vec2-conformer": {"model_type": "wav2vec2-conformer", **_TINY_WAV2VEC2_CONFORMER},
    "micro-parakeet": {"model_type": "parakeet_encoder", **_MICRO_FAST_CONFORMER},
    "micro-nemotron": {"model_type": "nemotron_asr_streaming_encoder", **_MICRO_FAST_CONFORMER},
    "micro-wav2vec2-bert": {"model_type": "wav2vec2-bert", **_TINY_BERT, **_MICRO_SIZE},
    "micro-wav2vec2-conformer": {
        "model_type": "wav2vec2-conformer",
        **_TINY_WAV2VEC2_CONFORMER,
        **_MICRO_SIZE,
        "conv_dim": [8] * 7,
    },
}


def read_configuration(source: str) -> Any:
    """The transformers configuration of a name in CONFIGURATIONS, of a config.json, or of a directory with one.

    Raises UserError for anything else, and for a model that could not be pretrained: of a type that is not supported,
    of one that reads waveforms without a mask embedding, or with an adapter behind the encoder.
    """
    values = CONFIGURATIONS.get(source)
    if values is None:
        values = _from_file(source)
    values = dict(values)
    model_type = str(values.pop("model_type", None))
    known = [name for name, family in FAMILIES.items() if family.encoder_class.config_class.model_type == name]
    if model_type not in known:
        raise UserError(f"CONFIG {source}: model type {model_type!r}; expected one of {', '.join(known)}")
    family = FAMILIES[model_type]
    cls: Any = family.encoder_class
    try:
        config = cls.config_class(**values)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise UserError(f"CONFIG {source}: {str(error.__cause__ or error).splitlines()[0]}") from error
    if getattr(config, "add_adapter", False):
        raise UserError(f"CONFIG {source}: add_adapter is true; nothing here trains an adapter, so give false")
    if family.features is None:
        _check_mask_embedding(source, config)
    else:
        family.features(config)  # whether its extractor can make what it asks for
    return config


def _check_mask_embedding(source: str, config: Any) -> None:
    if not (config.apply_spec_augment and config.mask_time_prob > 0):
        raise UserError(
            f"CONFIG {source}: apply_spec_augment is {config.apply_spec_augment}, mask_time_prob "
            f"{config.mask_time_prob}; masked prediction needs true and more than 0, for the mask's embedding"
        )


def _from_file(source: str) -> dict[str, Any]:
    path = Path(source)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            f"CONFIG {source!r} is neither a config.json, a directory that has one, nor one of "
            f"{', '.join(CONFIGURATIONS)}"
        )
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"CONFIG {path} is not JSON ({error}); expected a transformers config.json") from error
    if not isinstance(values, dict):
        raise UserError(f"CONFIG {path} holds no JSON object; expected a transformers config.json")
    return values
