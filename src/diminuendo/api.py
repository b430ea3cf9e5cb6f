"""The public functions: what the command line does, from Python."""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from diminuendo.data.manifest import ALL, read_cuts
from diminuendo.errors import UserError
from diminuendo.evaluation.probes import encoder_features, run_probe
from diminuendo.evaluation.sensitivity import audio_batches, measure
from diminuendo.families import Model, family_of, load
from diminuendo.families.inputs import SAMPLING_RATE
from diminuendo.given import Keep, given, keep_text, placed, read_settings, source_of, unused
from diminuendo.profiling.count import count_parameters
from diminuendo.profiling.latency import profile as profile_model
from diminuendo.pruning.budget import parse_budget
from diminuendo.recipes import RECIPES
from diminuendo.recognising import finetune, stream, transcribe, word_errors
from diminuendo.students.candidates import candidates
from diminuendo.training import compress as compression
from diminuendo.training import pretrain as pretraining
from diminuendo.training.compress_config import CompressConfig
from diminuendo.training.config import LoopConfig
from diminuendo.training.configurations import read_configuration
from diminuendo.training.device import device_type
from diminuendo.training.pretrain_config import BestRQConfig, PretrainConfig, config_class
from diminuendo.training.progress import tracked
from diminuendo.training.removing import Source

log = logging.getLogger(__name__)

__all__ = [
    "Keep",
    "compress",
    "compress_config",
    "compress_to_result",
    "evaluate",
    "finetune",
    "keep_text",
    "pretrain",
    "pretrain_config",
    "profile",
    "read_settings",
    "sensitivity",
    "source_of",
    "stream",
    "students",
    "transcribe",
]


def recipe_for(student: str | None) -> str:
    """The recipe where none is named: that of a student that has one, else DPHuBERT's."""
    return student if student in RECIPES else "dphubert"


def compress_config(recipe: str = "dphubert", **overrides: Any) -> CompressConfig:
    """A recipe's configuration with single values replaced; None leaves the recipe's. A student is a method."""
    if recipe not in RECIPES:
        raise UserError(f"--recipe {recipe}: unknown; known are {', '.join(RECIPES)}")
    if overrides.get("student") is not None and overrides.get("method") is None:
        overrides = {**overrides, "method": "student"}
    return replace(RECIPES[recipe](), **given(CompressConfig, overrides))


def compress_to_result(
    model: str | Path | Model,
    data: str | Path,
    out: str | Path,
    *,
    keep: Keep | None = None,
    recipe: str | None = None,
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
    which replace the recipe's (None for "dphubert", or that of a student that has one). With `dry_run` nothing is
    written, and what the run would take is returned. A model that is given as an object is left in evaluation mode and
    on the run's device. Raises UserError for wrong input.
    """
    recipe = recipe_for(settings.get("student")) if recipe is None else recipe
    config = compress_config(recipe, keep=None if keep is None else keep_text(keep), **settings)
    for sentence in unused(config, RECIPES[recipe](), settings):
        log.warning("%s", sentence)
    cuts = read_cuts(data, split)
    source = source_of(model)
    taught_by = None if teacher is None else source_of(teacher)
    if dry_run:
        return compression.dry_run(source, cuts, config, teacher=taught_by, loop=loop, recipe=recipe)
    return compression.compress(
        source,
        cuts,
        Path(out),
        config,
        teacher=taught_by,
        loop=loop,
        recipe=recipe,
        resume=resume,
        overwrite=overwrite,
    )


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

    configuration: a name in training.configurations, or a config.json. settings: fields of PretrainConfig or, for an
    encoder that reads features, of BestRQConfig. With `dry_run` nothing is written, and what the run would take is
    returned.
    """
    cls = pretrain_config(configuration)
    config = cls(**given(cls, settings))
    cuts = read_cuts(data, split)
    if dry_run:
        return pretraining.dry_run(configuration, cuts, config, loop=loop)
    return pretraining.pretrain(configuration, cuts, Path(out), config, loop=loop, resume=resume, overwrite=overwrite)


def pretrain_config(configuration: str) -> type[PretrainConfig] | type[BestRQConfig]:
    """The settings that a pretraining of this configuration has. UserError for an unknown one."""
    return config_class(read_configuration(configuration))


def compress(model: str | Path | Model, data: str | Path, out: str | Path, **options: Any) -> Model:
    """`compress_to_result` with the same options but `dry_run`, returning the smaller model."""
    if options.pop("dry_run", False):
        raise UserError("dry_run makes no model to return: call compress_to_result, which returns what it finds")
    compress_to_result(model, data, out, **options)
    return load(out)


def evaluate(
    model: str | Path | Model,
    data: str | Path,
    probe: str | None = None,
    *,
    against: str | Path | Model | None = None,
    split: str | None = None,
    beam: int = 1,
    lookahead: int | Sequence[int] | None = None,
    seed: int = 0,
    max_clips: int | None = None,
    device: str = "auto",
    quiet: bool = True,
) -> dict[str, Any]:
    """Of a recogniser its word error rate on the test split; of an encoder, or if named, the accuracy of a probe.

    probe: "keyword" (for an encoder without any) or "speaker", on frozen features; see evaluation.probes. against: a
    second recogniser, for the paired difference. beam: 1 decodes greedily. lookahead: of a streaming model, in ms; of
    several `lookaheads` has a result each.
    device: as for training; a model that is given as an object stays where it is unless it is named.
    """
    source = placed(model, device)
    if probe is None and family_of(source.model).is_recogniser(source.model):
        other = None if against is None else placed(against, device)
        options: dict[str, Any] = {
            "beam": beam,
            "lookahead": lookahead,
            "seed": seed,
            "max_clips": max_clips,
            "quiet": quiet,
        }
        return word_errors(source, data, against=other, split=split, **options)
    of_texts = {"--against": against, "--split": split, "--lookahead": lookahead, "--beam": None if beam == 1 else beam}
    for flag, value in of_texts.items():
        if value is not None:
            raise UserError(f"{flag} is for word error rates: MODEL is an encoder, or --probe is given; leave it out")
    return _probe(source, data, probe or "keyword", seed, max_clips)


def _probe(source: Source, data: str | Path, probe: str, seed: int, max_clips: int | None) -> dict[str, Any]:
    features = encoder_features(source.model, source.extractor)
    return asdict(run_probe(probe, features, read_cuts(data, ALL), seed, max_clips=max_clips))


def profile(model: str | Path | Model, *, seconds: float = 10.0, threads: int = 1, runs: int = 20) -> dict[str, Any]:
    """Parameters, MACs, bytes, latency, features, real-time factor and peak memory; see profiling.latency."""
    source = source_of(model)
    _check_seconds(source.model, seconds)
    return profile_model(source.model, source.extractor, seconds, threads, runs)


def _check_seconds(model: Model, seconds: float) -> None:
    if not 0 < seconds < math.inf:
        raise UserError(f"--seconds {seconds:g}: expected the length of a clip in seconds; 10 is usual")
    samples = torch.tensor([round(seconds * SAMPLING_RATE)])
    if int(family_of(model).frame_lengths(model, samples)) < 1:
        raise UserError(f"--seconds {seconds:g} is too short for a frame of the model; 10 is usual")


def students(
    model: str | Path | Model, keep: Keep = "params=0.25", *, seconds: float = 10.0, threads: int = 1, runs: int = 20
) -> list[dict[str, Any]]:
    """The students made by hand that a budget in parameters allows, and their costs; see students.candidates."""
    loaded = source_of(model).model
    _check_seconds(loaded, seconds)
    budget = parse_budget(keep_text(keep))
    if budget.kind != "params":
        raise UserError(f"--keep {budget}: a student is of some number of parameters; give --keep params=...")
    family, total = family_of(loaded), count_parameters(loaded)
    params = budget.amount(total) - (total - count_parameters(family.encoder(loaded)))
    return candidates(loaded, params, seconds=seconds, threads=threads, runs=runs)


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
