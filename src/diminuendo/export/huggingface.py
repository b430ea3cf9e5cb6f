"""A directory that `diminuendo.load` and transformers both open."""

import inspect
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, AutoTokenizer
from transformers.utils import cached_file

from diminuendo.families import Model, family_of
from diminuendo.families.family import Family

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


def travelling_file(family: Family) -> Path:
    """The one source file that is copied into every directory of a compressed model of this family."""
    return Path(inspect.getfile(family.ragged_encoder_class))


def _auto_map(family: Family) -> dict[str, str]:
    module = travelling_file(family).stem
    return {
        "AutoConfig": f"{module}.{family.ragged_config_class.__name__}",
        "AutoModel": f"{module}.{family.ragged_encoder_class.__name__}",
        "AutoModelForCTC": f"{module}.{family.ragged_ctc_class.__name__}",
    }


def save(
    model: Model, extractor: Any, directory: Path, *, card: str | None = None, tokenizer_of: str | None = None
) -> None:
    """Writes config.json, model.safetensors, the feature extractor, for a compressed model its code, and README.md.

    card: the text of the model card. tokenizer_of: a directory or hub id whose tokenizer files are taken along.
    Everything is written beside and renamed; config.json comes last, so a directory that has one is complete.
    """
    family = family_of(model)
    directory.mkdir(parents=True, exist_ok=True)
    staging = directory / ".saving"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    is_ragged = model.config.model_type == family.ragged_model_type
    if is_ragged:
        model.config.auto_map = _auto_map(family)
        shutil.copyfile(travelling_file(family), staging / travelling_file(family).name)
    model.save_pretrained(staging)
    extractor.save_pretrained(staging)
    if tokenizer_of is not None and isinstance(model, family.ctc_class | family.ragged_ctc_class):
        _copy_tokenizer(tokenizer_of, staging)
    if card is not None:
        (staging / "README.md").write_text(card)
    (directory / "config.json").unlink(missing_ok=True)
    for path in sorted(staging.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(path, directory / path.name)
    staging.rmdir()


def _copy_tokenizer(source: str, directory: Path) -> None:
    """The tokenizer's files; its class and the processor's by name, as transformers knows them by the model type."""
    try:
        for name in TOKENIZER_FILES:
            found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
            if found is not None:
                shutil.copyfile(found, directory / name)
        if not (directory / "vocab.json").is_file():
            log.warning("%s has no vocab.json: the recogniser comes without a tokenizer", source)
            return
        config = directory / "tokenizer_config.json"
        values = json.loads(config.read_text()) if config.is_file() else {}
        if not values.get("tokenizer_class"):
            values["tokenizer_class"] = type(AutoTokenizer.from_pretrained(source, trust_remote_code=False)).__name__
        if not values.get("processor_class"):
            values["processor_class"] = type(AutoProcessor.from_pretrained(source, trust_remote_code=False)).__name__
        config.write_text(json.dumps(values, indent=2) + "\n")
    except Exception as error:  # gone or out of reach by now: no reason to lose what training made
        log.warning("the tokenizer of %s is not taken along, or not whole: %s", source, error)
