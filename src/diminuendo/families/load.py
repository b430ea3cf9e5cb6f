"""Models from directories and from the hub, originals and compressed ones."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoFeatureExtractor, PreTrainedConfig, Wav2Vec2FeatureExtractor

from diminuendo.errors import UserError
from diminuendo.families.family import Model
from diminuendo.families.registry import family_of_type

log = logging.getLogger(__name__)

# Only training with masks reads it, and some published checkpoints lack it.
_MAY_BE_MISSING = ("masked_spec_embed",)


def _config_dict(source: str) -> dict[str, Any]:
    if Path(source).is_file():
        raise UserError(
            f"MODEL {source} is a file; expected a directory with config.json and model.safetensors, or a hub id"
        )
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise UserError(
            f"MODEL {source} has no config.json; expected a directory written by save_pretrained or diminuendo"
        )
    try:
        config, _ = PreTrainedConfig.get_config_dict(source)
    except (OSError, ValueError) as error:
        raise UserError(
            f"MODEL {source!r} is neither a model directory nor a model the hub gives ({_first_line(error)}); "
            "give a local directory, or a hub id where there is a network"
        ) from error
    if not config.get("model_type"):
        raise UserError(f"MODEL {source}: config.json names no model_type; expected a transformers model")
    return dict(config)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def load(source: str | os.PathLike[str]) -> Model:
    """The model in a directory or on the hub as an ordinary `PreTrainedModel` in fp32 and evaluation mode.

    A CTC recogniser keeps its head; of any other architecture the encoder is taken. A directory's own code is never
    run: compressed models are built by the classes of this package. UserError where weights are missing, of another
    size, or broken, and for a model type that is not supported.
    """
    source = os.fspath(source)
    values = _config_dict(source)
    family = family_of_type(str(values["model_type"]))
    is_ragged = values["model_type"] == family.ragged_model_type
    architecture = (values.get("architectures") or [""])[0]
    if architecture.endswith("ForCTC"):
        cls: Any = family.ragged_ctc_class if is_ragged else family.ctc_class
    else:
        cls = family.ragged_encoder_class if is_ragged else family.encoder_class
    try:
        model, info = cls.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"MODEL {source}: its weights cannot be read as a {values['model_type']} model ({_first_line(error)}); "
            "expected complete model.safetensors beside config.json"
        ) from error
    missing = [name for name in info["missing_keys"] if not name.endswith(_MAY_BE_MISSING)]
    if missing or info["mismatched_keys"]:
        names = [*missing, *(str(key) for key in info["mismatched_keys"])]
        raise UserError(
            f"MODEL {source}: {len(names)} tensors are missing or of another size (first: {names[0]}); "
            "expected the weights that belong to config.json"
        )
    if info["unexpected_keys"]:
        log.info("%s: %d tensors are not used by %s", source, len(info["unexpected_keys"]), cls.__name__)
    return model.eval()


def load_feature_extractor(source: str | os.PathLike[str]) -> Any:
    """The model's own feature extractor; where none is saved, wav2vec 2.0's defaults, which is said."""
    source = os.fspath(source)
    try:
        return AutoFeatureExtractor.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError):
        log.warning(
            "%s has no feature extractor: taking 16 kHz waveforms of zero mean and unit variance",
            source,
        )
        return Wav2Vec2FeatureExtractor(feature_size=1, sampling_rate=16_000, do_normalize=True)
