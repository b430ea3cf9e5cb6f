"""Models from directories and from the hub, originals and compressed ones."""

import json
import logging
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoFeatureExtractor, PreTrainedConfig, Wav2Vec2FeatureExtractor
from transformers.utils import cached_file

from diminuendo.errors import UserError
from diminuendo.families.build import FORMAT
from diminuendo.families.family import Family, Model
from diminuendo.families.filter_banks import filter_bank_extractor
from diminuendo.families.inputs import SAMPLING_RATE
from diminuendo.families.registry import family_of_type
from diminuendo.modules.ragged import Ragged

log = logging.getLogger(__name__)

# Only training with masks reads it, and some published checkpoints lack it.
_MAY_BE_MISSING = ("masked_spec_embed",)
_EXTRACTOR_FILES = ("preprocessor_config.json", "processor_config.json")


def _config_dict(source: str) -> dict[str, Any]:
    directory = Path(source)
    if directory.is_file():
        raise UserError(
            f"MODEL {source} is a file; expected a directory with config.json and model.safetensors, or a hub id"
        )
    if directory.is_dir():
        return _local_config_dict(directory)
    if source.startswith(("/", ".", "~")):
        raise UserError(f"MODEL {source}: no such directory; expected one with config.json and model.safetensors")
    try:
        config, _ = PreTrainedConfig.get_config_dict(source)
    except (OSError, ValueError) as error:
        raise UserError(
            f"MODEL {source!r} is neither a directory nor a model the hub gives ({_reason(error)}); "
            "give a local directory, or a hub id where there is a network"
        ) from error
    return dict(config)


def _local_config_dict(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(
            f"MODEL {directory} has no config.json; expected a directory written by save_pretrained or diminuendo"
        )
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"MODEL {directory}: config.json cannot be read as JSON ({_reason(error)}); copy it again"
        ) from error
    if not isinstance(config, dict):
        raise UserError(
            f"MODEL {directory}: config.json holds a {type(config).__name__}; expected an object with a model_type"
        )
    return config


def _reason(error: BaseException) -> str:
    return textwrap.shorten(str(error) or type(error).__name__, 110, placeholder=" ...")


def load(source: str | os.PathLike[str]) -> Model:
    """The model in a directory or on the hub as an ordinary `PreTrainedModel` in fp32 and evaluation mode.

    A recogniser keeps its head; of any other architecture the encoder is taken. A directory's own code is never
    run: compressed models are built by the classes of this package. UserError where weights are missing, of another
    size, or broken, and for a model type that is not supported.
    """
    source = os.fspath(source)
    values = _config_dict(source)
    if not values.get("model_type"):
        raise UserError(f"MODEL {source}: config.json names no model_type; expected a transformers model")
    family = family_of_type(str(values["model_type"]))
    cls = _class_of(family, values)
    if issubclass(cls, Ragged):
        _check_format(source, values)
    try:
        model, info = cls.from_pretrained(
            source,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            trust_remote_code=False,
        )
    except Exception as error:  # of nearly any type, for broken files
        raise UserError(
            f"MODEL {source}: its configuration or weights cannot be read as a {values['model_type']} model "
            f"({_reason(error)}); expected a config.json with the complete model.safetensors that belongs to it"
        ) from error
    missing = [name for name in info["missing_keys"] if not name.endswith(_MAY_BE_MISSING)]
    for name in info["missing_keys"] - set(missing):
        model.get_parameter(name).data.zero_()  # not at random: a model is the same model whenever it is loaded
    if missing or info["mismatched_keys"]:
        names = sorted([*missing, *(name for name, *_ in info["mismatched_keys"])])
        raise UserError(
            f"MODEL {source}: {len(names)} tensors are missing or of another size (first: {names[0]}); "
            "expected the weights that belong to config.json"
        )
    if info["unexpected_keys"]:
        unused = sorted(info["unexpected_keys"])
        log.warning("%s: %d tensors are not used by %s (first: %s)", source, len(unused), cls.__name__, unused[0])
    family.mask_padding(model)
    return model.eval()


def _class_of(family: Family, values: Mapping[str, Any]) -> Any:
    """The class that config.json names; the first of its model type where that is none of ours."""
    named = (values.get("architectures") or [""])[0]
    classes = [cls for known in family.architectures for cls in known.classes]
    fitting = [cls for cls in classes if cls.config_class.model_type == values["model_type"]]
    return next((cls for cls in fitting if cls.__name__ == named), fitting[0])


def _check_format(source: str, values: Mapping[str, Any]) -> None:
    ours = values.get("diminuendo")
    version = ours.get("format") if isinstance(ours, dict) else None
    if version != FORMAT:
        raise UserError(
            f"MODEL {source}: its format is {version!r}, this diminuendo reads {FORMAT}; "
            "use the version of diminuendo that wrote it"
        )


def load_feature_extractor(source: str | os.PathLike[str]) -> Any:
    """The model's own feature extractor; where none is saved, wav2vec 2.0's defaults, which is said.

    Raises UserError for one that cannot be read, for a model that reads features and has none, and for a model of
    another sampling rate than 16 kHz.
    """
    source = os.fspath(source)
    try:
        if not any(cached_file(source, name, _raise_exceptions_for_missing_entries=False) for name in _EXTRACTOR_FILES):
            return _default_extractor(source)
        extractor = AutoFeatureExtractor.from_pretrained(source, trust_remote_code=False)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(
            f"MODEL {source}: its feature extractor cannot be read ({_reason(error)}); expected the "
            "preprocessor_config.json that belongs to it"
        ) from error
    ours = filter_bank_extractor()
    if isinstance(extractor, type(ours)) and any(
        getattr(extractor, name) != getattr(ours, name) for name in ("do_ceptral_normalize", "num_mel_bins", "dither")
    ):
        raise UserError(
            f"MODEL {source}: its preprocessor_config.json has other filter banks than diminuendo gives; expected "
            f"{ours.num_mel_bins} bands, neither normalised nor dithered"
        )
    if extractor.sampling_rate != SAMPLING_RATE:
        raise UserError(
            f"MODEL {source} hears audio of {extractor.sampling_rate} Hz; supported are models of {SAMPLING_RATE} Hz"
        )
    return extractor


def _default_extractor(source: str) -> Any:
    values = _config_dict(source)
    hears_features = (values.get("diminuendo") or {}).get("input") == "fbank"
    if hears_features or not family_of_type(str(values.get("model_type"))).reads_waveforms:
        raise UserError(
            f"MODEL {source} reads features and has no feature extractor; expected the preprocessor_config.json that "
            "belongs to it"
        )
    log.warning("%s has no feature extractor: taking 16 kHz waveforms of zero mean and unit variance", source)
    return Wav2Vec2FeatureExtractor(feature_size=1, sampling_rate=SAMPLING_RATE, do_normalize=True)
