"""What users give: models, budgets and settings, as the library takes them."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError

from diminuendo.errors import UserError
from diminuendo.families import Model, family_of, load, load_feature_extractor
from diminuendo.training.compress_config import LEARNED, CompressConfig
from diminuendo.training.config import TrainingConfig
from diminuendo.training.device import device_type
from diminuendo.training.removing import Source

Keep = str | Mapping[str, float | str]
_LEARNS = f"only methods that learn what goes ({', '.join(LEARNED)}) use it"
USES: tuple[tuple[str, Callable[[CompressConfig], bool], tuple[str, ...]], ...] = (
    (f"{_LEARNS}, others distil_learning_rate", lambda config: config.learned, ("learning_rate",)),
    (
        f"{_LEARNS}, and --input fbank, others distil_warm_up",
        lambda config: config.learned or config.hears_filter_banks,
        ("warm_up",),
    ),
    (
        _LEARNS,
        lambda config: config.learned,
        (
            *("gate_learning_rate", "multiplier_learning_rate", "ramp", "drop_rate", "neuron_drop_rate"),
            *("two_sided", "one_schedule"),
        ),
    ),
    ("--student says the shape", lambda config: config.method != "student", ("round_to", "fixed")),
    (
        "a discriminative loss uses it, like --set discriminative=projected",
        lambda config: config.discriminative is not None,
        ("num_clusters", "torn_between", "cluster_layer", "cluster_seconds", "cluster_weight"),
    ),
    ("--input fbank hears no clip's level", lambda config: config.input != "fbank", ("level",)),
    ("--input fbank uses it", lambda config: config.hears_filter_banks, ("input_steps", "input_learning_rate")),
    (
        "a budget in latency uses it, like --keep latency=0.5",
        lambda config: config.budget.kind == "latency",
        ("latency_device", "latency_threads"),
    ),
    ("a --task uses it", lambda config: config.task is not None, ("task_weight", "posterior_weight")),
)
"""Of settings that not every compression uses: what does, whether one is such, and their names."""


def source_of(model: str | Path | Model) -> Source:
    """A model with its feature extractor, from a directory, a hub id, or a model that was loaded from one."""
    if isinstance(model, str | Path):
        return Source(load(model), load_feature_extractor(model), str(model))
    family = family_of(model)
    if family.architecture_of(model) is None:
        known = ", ".join(architecture.classes[0].__name__ for architecture in family.architectures)
        raise UserError(f"the model is a {type(model).__name__}; expected one of {known}, or what was made of them")
    if other := {str(p.dtype) for p in model.parameters() if p.dtype != torch.float32}:
        raise UserError(
            f"the model has weights in {', '.join(sorted(other))}; expected float32, as model.float() gives"
        )
    name = getattr(model.config, "_name_or_path", "") or None
    if name is None:
        raise UserError("the model knows no directory or hub id that it came from; save it and give that directory")
    return Source(model, load_feature_extractor(name), str(name))


def placed(model: str | Path | Model, device: str) -> Source:
    """As `source_of`, on a device; a model that is given as an object stays where it is unless a device is named."""
    here, source = device_type(device), source_of(model)
    if isinstance(model, str | Path) or device != "auto":
        source.model.to(here)
    return source


def keep_text(keep: Keep) -> str:
    """`{"params": 0.25}` as `params=0.25`; text as it is."""
    if isinstance(keep, str):
        return keep
    if len(keep) != 1:
        raise UserError(f"keep {dict(keep)}: expected one budget, like {{'params': 0.25}}")
    ((kind, amount),) = keep.items()
    return f"{kind}={amount}"


def given(config: type[TrainingConfig], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not None. UserError for one that the configuration does not have."""
    known = {field.name for field in fields(config)}
    if unknown := sorted(settings.keys() - known):
        raise UserError(f"unknown setting {unknown[0]!r}; known are {', '.join(sorted(known))}")
    return {name: value for name, value in settings.items() if value is not None}


def unused(config: CompressConfig, recipe: CompressConfig, names: Iterable[str]) -> list[str]:
    """A sentence about each of those settings that differs from its recipe's and that nothing in this run uses."""
    return [
        f"{name} has no effect here: {what}"
        for what, used, its in USES
        for name in its
        if name in names and not used(config) and getattr(config, name) != getattr(recipe, name)
    ]


def read_settings(config: type[TrainingConfig], texts: Sequence[str], **flags: Any) -> dict[str, Any]:
    """The flags that were given, and texts like `learning_rate=1e-4` or `layers=[0, 6, 12]`, as their fields' types.

    UserError for a text that is none, of a wrong type, of a flag that was given as well, or of an unknown field.
    """
    found, types = given(config, flags), get_type_hints(config)
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: expected NAME=VALUE, like learning_rate=1e-4")
        if name in found:
            raise UserError(f"--set {text}: {name} is given twice; give it once")
        given(config, {name: value})
        try:
            found[name] = TypeAdapter(types[name]).validate_python(_json_or_text(value))
        except ValidationError as error:
            raise UserError(f"--set {text}: {error.errors()[0]['msg']}") from error
    return found


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value
