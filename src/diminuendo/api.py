"""The public functions: what the command line does, from Python."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError

from diminuendo.data.manifest import ALL, read_cuts
from diminuendo.errors import UserError
from diminuendo.evaluation.probes import encoder_features, run_probe
from diminuendo.evaluation.sensitivity import audio_batches, measure
from diminuendo.families import Model, family_of, load, load_feature_extractor
from diminuendo.families.inputs import SAMPLING_RATE
from diminuendo.profiling.latency import profile as profile_model
from diminuendo.recipes import RECIPES
from diminuendo.training import compress as compression
from diminuendo.training import pretrain as pretraining
from diminuendo.training.compress_config import CompressConfig
from diminuendo.training.config import LoopConfig, TrainingConfig
from diminuendo.training.device import device_type
from diminuendo.training.pretrain_config import PretrainConfig
from diminuendo.training.progress import tracked
from diminuendo.training.removing import Source

log = logging.getLogger(__name__)

Keep = str | Mapping[str, float | str]


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


def keep_text(keep: Keep) -> str:
    """`{"params": 0.25}` as `params=0.25`; text as it is."""
    if isinstance(keep, str):
        return keep
    if len(keep) != 1:
        raise UserError(f"keep {dict(keep)}: expected one budget, like {{'params': 0.25}}")
    ((kind, amount),) = keep.items()
    return f"{kind}={amount}"


def compress_config(recipe: str = "dphubert", **overrides: Any) -> CompressConfig:
    """A recipe's configuration with single values replaced; None leaves the recipe's."""
    if recipe not in RECIPES:
        raise UserError(f"--recipe {recipe}: unknown; known are {', '.join(RECIPES)}")
    return replace(RECIPES[recipe](), **_given(CompressConfig, overrides))


def _given(config: type[TrainingConfig], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not None. UserError for one that the configuration does not have."""
    known = {field.name for field in fields(config)}
    if unknown := sorted(settings.keys() - known):
        raise UserError(f"unknown setting {unknown[0]!r}; known are {', '.join(sorted(known))}")
    return {name: value for name, value in settings.items() if value is not None}


def read_settings(config: type[TrainingConfig], texts: Sequence[str], **flags: Any) -> dict[str, Any]:
    """The flags that were given, and texts like `learning_rate=1e-4` or `layers=[0, 6, 12]`, as their fields' types.

    UserError for a text that is none, of a wrong type, of a flag that was given as well, or of an unknown field.
    """
    found, types = _given(config, flags), get_type_hints(config)
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: expected NAME=VALUE, like learning_rate=1e-4")
        if name in found:
            raise UserError(f"--set {text}: {name} is given twice; give it once")
        _given(config, {name: value})
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


def compress_to_result(
    model: str | Path | Model,
    data: str | Path,
    out: str | Path,
    *,
    keep: Keep | None = None,
    recipe: str = "dphubert",
    teacher: str | Path | Model | None = None,
    split: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    loop: LoopConfig | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Compresses a model into the directory `out` and returns the run's result, which is there as result.json too.

    keep: the budget, like {"params": 0.25}, "params=23.5M" or {"latency": "40ms"}. settings: fields of CompressConfig,
    which replace the recipe's. With `dry_run` nothing is written, and what the run would take is returned. A model that
    is given as an object is left in evaluation mode and on the run's device. Raises UserError for wrong input.
    """
    config = compress_config(recipe, keep=None if keep is None else keep_text(keep), **settings)
    cuts = read_cuts(data, split)
    source = source_of(model)
    teacher_model = None if teacher is None else _teacher_of(source, teacher)
    if dry_run:
        return compression.dry_run(source, cuts, config, teacher=teacher_model, loop=loop, recipe=recipe)
    return compression.compress(
        source,
        cuts,
        Path(out),
        config,
        teacher=teacher_model,
        loop=loop,
        recipe=recipe,
        resume=resume,
        overwrite=overwrite,
    )


def _teacher_of(source: Source, teacher: str | Path | Model) -> Model:
    other = source_of(teacher)
    for setting in ("do_normalize", "feature_extractor_type"):
        here, there = (extractor.to_dict().get(setting) for extractor in (source.extractor, other.extractor))
        if here != there:
            raise UserError(
                f"--teacher's feature extractor has {setting} {there}, MODEL's {here}: both get one input, so give a "
                "teacher that hears what MODEL hears"
            )
    return other.model


def pretrain(
    configuration: str,
    data: str | Path,
    out: str | Path,
    *,
    split: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    loop: LoopConfig | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Trains an encoder on audio alone into the directory `out` and returns the run's result.

    configuration: a name in training.configurations, or a config.json. settings: fields of PretrainConfig. With
    `dry_run` nothing is written, and what the run would take is returned.
    """
    config = PretrainConfig(**_given(PretrainConfig, settings))
    cuts = read_cuts(data, split)
    if dry_run:
        return pretraining.dry_run(configuration, cuts, config, loop=loop)
    return pretraining.pretrain(configuration, cuts, Path(out), config, loop=loop, resume=resume, overwrite=overwrite)


def compress(model: str | Path | Model, data: str | Path, out: str | Path, **options: Any) -> Model:
    """`compress_to_result` with the same options but `dry_run`, returning the smaller model."""
    if options.pop("dry_run", False):
        raise UserError("dry_run makes no model to return: call compress_to_result, which returns what it finds")
    compress_to_result(model, data, out, **options)
    return load(out)


def evaluate(
    model: str | Path | Model,
    data: str | Path,
    probe: str,
    *,
    seed: int = 0,
    max_clips: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """The accuracy of a probe ("keyword" or "speaker") on a model's frozen features; see evaluation.probes.

    device: as for training; a model that is given as an object stays where it is unless it is named.
    """
    here = device_type(device)
    source = source_of(model)
    if isinstance(model, str | Path) or device != "auto":
        source.model.to(here)
    features = encoder_features(source.model, source.extractor)
    return asdict(run_probe(probe, features, read_cuts(data, ALL), seed, max_clips=max_clips))


def profile(model: str | Path | Model, *, seconds: float = 10.0, threads: int = 1, runs: int = 20) -> dict[str, Any]:
    """Parameters, MACs, bytes, latency, real-time factor and peak memory; see profiling.latency."""
    loaded = source_of(model).model
    if not 0 < seconds < math.inf:
        raise UserError(f"--seconds {seconds:g}: expected the length of a clip in seconds; 10 is usual")
    samples = torch.tensor([round(seconds * SAMPLING_RATE)])
    if int(family_of(loaded).frame_lengths(loaded, samples)) < 1:
        raise UserError(f"--seconds {seconds:g} is too short for a frame of the model; 10 is usual")
    return profile_model(loaded, seconds, threads, runs)


def sensitivity(
    model: str | Path | Model,
    data: str | Path,
    out: str | Path | None = None,
    *,
    seconds: float = 60.0,
    split: str | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> dict[str, Any]:
    """How far hidden states move on about `seconds` of audio when one axis is cut to half; see evaluation.sensitivity.

    With `out`, a new or empty directory, the result is kept there as result.json, with a plot.
    """
    here = device_type(device)
    if not 1 <= seconds < math.inf:
        raise UserError(f"--seconds {seconds:g}: expected how much audio to measure on, 1 s or more; 60 is usual")
    directory = None if out is None else Path(out)
    if directory is not None and directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise UserError(f"--out {directory} exists and is not an empty directory; give another")
    cuts = read_cuts(data, split)
    source = source_of(model)
    batches = audio_batches(cuts, seconds)
    if directory is not None:  # before the measurement, which would be lost
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--out {directory} cannot be made ({error.strerror}); give a directory that you may write"
            ) from error
    rows = measure(
        source.model,
        source.extractor,
        batches,
        here,
        lambda passes: tracked(passes, "sensitivity", "passes", quiet),
    )
    result = {
        "command": "sensitivity",
        "model": source.name,
        "audio_seconds": round(sum(batch.seconds for batch in batches), 3),
        "clips": sum(len(batch.cuts) for batch in batches),
        "states": len(rows[0].changes),
        "rows": [asdict(row) for row in rows],
    }
    if directory is not None:
        from diminuendo.report.sensitivity import write_sensitivity  # matplotlib: not for every command

        result["out"] = str(directory)
        write_sensitivity(result, rows, directory)
    return result
