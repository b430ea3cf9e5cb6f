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

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "tiny-hubert": {"model_type": "hubert", **_TINY, **_BASE},
    "tiny-wav2vec2": {"model_type": "wav2vec2", **_TINY, **_BASE},
    "tiny-unispeech-sat": {"model_type": "unispeech-sat", **_TINY, **_BASE},
    "tiny-hubert-large": {"model_type": "hubert", **_TINY, **_LARGE},
    "demo-hubert": {"model_type": "hubert", **_DEMO, **_BASE},
    "micro-hubert": {"model_type": "hubert", **_MICRO, **_BASE},
    "micro-hubert-large": {"model_type": "hubert", **_MICRO, **_LARGE},
}


def read_configuration(source: str) -> Any:
    """The transformers configuration of a name in CONFIGURATIONS, of a config.json, or of a directory with one.

    Raises UserError for anything else, and for a model that could not be pretrained: of a type that is not supported,
    or without a mask embedding.
    """
    values = CONFIGURATIONS.get(source)
    if values is None:
        values = _from_file(source)
    values = dict(values)
    model_type = str(values.pop("model_type", None))
    known = [name for name, family in FAMILIES.items() if family.reads_waveforms]
    if model_type not in known:
        raise UserError(f"CONFIG {source}: model type {model_type!r}; expected one of {', '.join(known)}")
    cls: Any = FAMILIES[model_type].encoder_class
    try:
        config = cls.config_class(**values)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise UserError(f"CONFIG {source}: {str(error.__cause__ or error).splitlines()[0]}") from error
    if not (config.apply_spec_augment and config.mask_time_prob > 0):
        raise UserError(
            f"CONFIG {source}: apply_spec_augment is {config.apply_spec_augment}, mask_time_prob "
            f"{config.mask_time_prob}; masked prediction needs true and more than 0, for the mask's embedding"
        )
    return config


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
