"""A directory that `diminuendo.load` and transformers both open."""

import inspect
import json
import logging
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, AutoTokenizer, ProcessorMixin
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import cached_file

from diminuendo.families import Model, family_of
from diminuendo.families.family import Architecture, Family, is_ragged

log = logging.getLogger(__name__)

# What a recogniser's directory holds beside weights, configuration and feature extractor.
TOKENIZER_FILES = (
    "vocab.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
    "processor_config.json",
)


def travelling_files(architecture: Architecture) -> tuple[Path, ...]:
    """The source files that are copied into every directory of a compressed model of this architecture."""
    first = inspect.getfile(architecture.ragged)
    return tuple(sorted({Path(first), *map(Path, get_relative_import_files(first))}))


def _auto_map(family: Family, model_type: str, files: Collection[str]) -> dict[str, str]:
    """Of every transformers class that opens a model of this type by one of these files: what it is to build."""
    found = {}
    for architecture in family.architectures:
        file = Path(inspect.getfile(architecture.ragged))
        if architecture.ragged.config_class.model_type == model_type and file.name in files:
            module = file.stem
            config = architecture.ragged.config_class
            found["AutoConfig"] = f"{Path(inspect.getfile(config)).stem}.{config.__name__}"
            found[architecture.auto_class] = f"{module}.{architecture.ragged.__name__}"
            found.setdefault("AutoModel", f"{module}.{architecture.ragged.__name__}")
    return found


def save(
    model: Model,
    extractor: Any,
    directory: Path,
    *,
    card: str | None = None,
    tokenizer: Any = None,
    tokenizer_of: str | None = None,
) -> None:
    """Writes config.json, model.safetensors, the feature extractor, for a compressed model its code, and README.md.

    card: the text of the model card. tokenizer: of a recogniser; or tokenizer_of, a directory or hub id whose tokenizer
    files are taken along.
    Everything is written beside and renamed; config.json comes last, so a directory that has one is complete.
    """
    family = family_of(model)
    directory.mkdir(parents=True, exist_ok=True)
    staging = directory / ".saving"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    if is_ragged(model):
        architecture = family.architecture_of(model)
        assert architecture is not None
        sources = travelling_files(architecture)
        model.config.auto_map = _auto_map(family, model.config.model_type, [source.name for source in sources])
        for source in sources:
            shutil.copyfile(source, staging / source.name)
    model.save_pretrained(staging)
    _forget_paths(staging / "config.json")
    for weights in staging.glob("*.safetensors"):  # which safetensors lets their owner alone read
        shutil.copymode(staging / "config.json", weights)
    extractor.save_pretrained(staging)
    if tokenizer is not None:
        tokenizer.save_pretrained(staging)
    elif tokenizer_of is not None and family.is_recogniser(model):
        _copy_tokenizer(tokenizer_of, staging)
    if card is not None:
        (staging / "README.md").write_text(card)
    (directory / "config.json").unlink(missing_ok=True)
    for path in sorted(staging.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(path, directory / path.name)
    staging.rmdir()


def _forget_paths(config: Path) -> None:
    """Takes out where a recogniser's encoder came from, a path of this machine that would be published."""
    values = json.loads(config.read_text())
    for part in values.values():
        if isinstance(part, dict):
            part.pop("_name_or_path", None)
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def _forget_extractor(processor: Path) -> None:
    """Takes out what a processor says of its feature extractor: transformers would read that, not the model's own."""
    if processor.is_file():
        values = json.loads(processor.read_text())
        values.pop("feature_extractor", None)
        processor.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def _copy_tokenizer(source: str, directory: Path) -> None:
    """The tokenizer's files; its class and the processor's by name, as transformers knows them by the model type."""
    try:
        for name in TOKENIZER_FILES:
            found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
            if found is not None:
                shutil.copyfile(found, directory / name)
        _forget_extractor(directory / "processor_config.json")
        if not any((directory / name).is_file() for name in ("vocab.json", "tokenizer.json")):
            log.warning("%s has no vocab.json or tokenizer.json: the recogniser comes without a tokenizer", source)
            return
        config = directory / "tokenizer_config.json"
        values = json.loads(config.read_text()) if config.is_file() else {}
        if not values.get("tokenizer_class"):
            values["tokenizer_class"] = type(AutoTokenizer.from_pretrained(source, trust_remote_code=False)).__name__
        if not values.get("processor_class"):
            processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
            if isinstance(processor, ProcessorMixin):  # beside no model it is the tokenizer itself
                values["processor_class"] = type(processor).__name__
        config.write_text(json.dumps(values, indent=2) + "\n")
    except Exception as error:  # gone or out of reach by now: no reason to lose what training made
        log.warning("the tokenizer of %s is not taken along, or not whole: %s", source, error)
