"""The public functions: what the command line does, from Python."""

import copy
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch
from lhotse import CutSet
from pydantic import TypeAdapter, ValidationError

from diminuendo.data.audio import Skipped
from diminuendo.data.files import whole_file
from diminuendo.data.manifest import ALL, read_cuts
from diminuendo.data.tokens import load_tokens
from diminuendo.errors import UserError
from diminuendo.evaluation.probes import encoder_features, run_probe
from diminuendo.evaluation.recognition import recognition_errors
from diminuendo.evaluation.sensitivity import audio_batches, measure
from diminuendo.evaluation.streaming import Heard, Stream, check_streaming, streamed
from diminuendo.evaluation.transcripts import (
    Decoding,
    Recogniser,
    batches_of,
    check_decoding,
    seconds_per_frame,
    transcripts,
)
from diminuendo.families import Model, family_of, load, load_feature_extractor
from diminuendo.families.inputs import SAMPLING_RATE
from diminuendo.profiling.latency import profile as profile_model
from diminuendo.recipes import RECIPES
from diminuendo.training import compress as compression
from diminuendo.training import finetune as finetuning
from diminuendo.training import pretrain as pretraining
from diminuendo.training.compress_config import CompressConfig
from diminuendo.training.config import LoopConfig, TrainingConfig
from diminuendo.training.configurations import CONFIGURATIONS, read_configuration
from diminuendo.training.device import device_type
from diminuendo.training.finetune_config import FinetuneConfig
from diminuendo.training.own_prediction import encoder_of, extractor_of
from diminuendo.training.pretrain_config import BestRQConfig, PretrainConfig, config_class
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
    config = cls(**_given(cls, settings))
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


def finetune(
    model: str | Path | Model,
    data: str | Path,
    out: str | Path,
    *,
    split: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    loop: LoopConfig | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Trains a recogniser, from an encoder or from another one, into the directory `out`; returns the run's result.

    model: or a name in training.configurations, for an encoder with fresh weights.
    settings: fields of FinetuneConfig, like task="ctc+rnnt" or tokens="pieces". A model that is given as an object is
    left as it is.
    """
    config = FinetuneConfig(**_given(FinetuneConfig, settings))
    if isinstance(model, str) and model in CONFIGURATIONS:
        source = _fresh(model, config.seed)
    else:
        source = source_of(model)
        if not isinstance(model, str | Path):
            source = replace(source, model=copy.deepcopy(source.model))
    return finetuning.finetune(
        source, read_cuts(data, split), Path(out), config, loop=loop, resume=resume, overwrite=overwrite
    )


def _fresh(name: str, seed: int) -> Source:
    configuration = read_configuration(name)
    torch.manual_seed(seed)
    return Source(encoder_of(configuration), extractor_of(configuration), name)


def evaluate(
    model: str | Path | Model,
    data: str | Path,
    probe: str | None = None,
    *,
    against: str | Path | Model | None = None,
    split: str | None = None,
    beam: int = 1,
    lookahead: int | None = None,
    seed: int = 0,
    max_clips: int | None = None,
    device: str = "auto",
    quiet: bool = True,
) -> dict[str, Any]:
    """Of a recogniser its word error rate on the test split; of an encoder, or if named, the accuracy of a probe.

    probe: "keyword" (for an encoder without any) or "speaker", on frozen features; see evaluation.probes. against: a
    second recogniser, for the paired difference. beam: 1 decodes greedily. lookahead: of a streaming model, in ms.
    device: as for training; a model that is given as an object stays where it is unless it is named.
    """
    source = _placed(model, device)
    if probe is not None or not family_of(source.model).is_recogniser(source.model):
        given = {
            "--against": against,
            "--split": split,
            "--lookahead": lookahead,
            "--beam": None if beam == 1 else beam,
        }
        for flag, value in given.items():
            if value is not None:
                raise UserError(
                    f"{flag} is for word error rates: MODEL is an encoder, or --probe is given; leave it out"
                )
        return _probe(source, data, probe or "keyword", seed, max_clips)
    decoding = Decoding(beam=beam, n_best=1, lookahead=_lookahead_frames(source.model, lookahead))
    check_decoding(source.model, decoding)
    other = None if against is None else _other(_placed(against, device), decoding)
    cuts = read_cuts(data, split, default_split="test")
    if max_clips is not None:
        cuts = cuts.subset(first=max_clips)
    result, _ = recognition_errors(
        _recogniser_of(source),
        cuts,
        decoding,
        other=other,
        seed=seed,
        progress=lambda batches, total: tracked(batches, "evaluate", "batches", quiet, total),
    )
    return result


def _placed(model: str | Path | Model, device: str) -> Source:
    here, source = device_type(device), source_of(model)
    if isinstance(model, str | Path) or device != "auto":
        source.model.to(here)
    return source


def _probe(source: Source, data: str | Path, probe: str, seed: int, max_clips: int | None) -> dict[str, Any]:
    features = encoder_features(source.model, source.extractor)
    return asdict(run_probe(probe, features, read_cuts(data, ALL), seed, max_clips=max_clips))


def _other(source: Source, decoding: Decoding) -> Recogniser:
    """What a recogniser is compared with. UserError, naming the flag, if it writes no text."""
    if not family_of(source.model).is_recogniser(source.model):
        raise UserError(f"--against {source.name} is an encoder, which writes no text; give a recogniser")
    check_decoding(source.model, replace(decoding, lookahead=None))
    return _recogniser_of(source)


def _recogniser_of(source: Source) -> Recogniser:
    return Recogniser(source.model, source.extractor, load_tokens(str(source.name), source.model.config))


def _lookahead_frames(model: Model, milliseconds: int | None) -> int | None:
    """A lookahead in frames of the encoder. UserError if it is not a whole number of them."""
    if milliseconds is None:
        return None
    frame = round(1000 * seconds_per_frame(model))
    if milliseconds < 0 or milliseconds % frame:
        raise UserError(f"--lookahead {milliseconds}: expected a multiple of {frame} ms, the model's frame, 0 or more")
    return milliseconds // frame


def transcribe(
    model: str | Path | Model,
    audio: Sequence[str | Path],
    *,
    beam: int = 1,
    n_best: int = 1,
    lookahead: int | None = None,
    streaming: bool = False,
    chunk_ms: int | None = None,
    tell: Callable[[str, Heard], None] = lambda audio, heard: None,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """What a recogniser hears in audio files: of each `audio`, `text`, `words` with their seconds, `score`, `others`.

    beam, n_best: of beam search; the `others` are the next best texts. lookahead: of a streaming model, in ms. Raises
    UserError for files that cannot be read.

    streaming: each file comes in chunks of `chunk_ms` (None: as many as the lookahead needs), as it would from a
    microphone; then there is `streaming` too, with the fields of evaluation.streaming.Cost. tell: called with the file
    and what is heard so far whenever the text has changed.
    """
    source = _placed(model, device)
    decoding = Decoding(beam=beam, n_best=n_best, lookahead=_lookahead_frames(source.model, lookahead))
    (check_streaming if streaming else check_decoding)(source.model, decoding)
    if chunk_ms is not None and not streaming:
        raise UserError("--chunk-ms: without --streaming files are heard whole; give --streaming too")
    recogniser = _recogniser_of(source)
    cuts = CutSet([whole_file(str(i), path) for i, path in enumerate(audio)])
    skipped = Skipped()
    if streaming:
        costly = streamed(
            recogniser,
            cuts,
            decoding,
            chunk_ms=chunk_ms,
            tell=lambda clip, heard: tell(str(audio[int(clip)]), heard),
            skipped=skipped,
        )
        found = {one.id: {**asdict(one), "streaming": asdict(cost)} for one, cost in costly}
    else:
        whole = transcripts(recogniser, batches_of(recogniser, cuts, skipped=skipped), decoding)
        found = {one.id: asdict(one) for one in whole}
    if len(found) < len(audio):
        raise UserError(f"{len(audio) - len(found)} of {len(audio)} files cannot be used: {skipped.summary()}")
    return [{"audio": str(path), **found[str(i)]} for i, path in enumerate(audio)]


def stream(model: str | Path | Model, *, lookahead: int | None = None, device: str = "auto") -> Stream:
    """One utterance of any length, heard while it comes. UserError for a model that cannot stream.

        utterance = stream("model", lookahead=80)
        for samples in microphone: print(utterance.push(samples).text)
        print(utterance.finish().text)

    samples: 16 kHz, mono, floats within [-1, 1], in chunks of any size. lookahead: in ms (None: the model's own).
    """
    source = _placed(model, device)
    decoding = Decoding(lookahead=_lookahead_frames(source.model, lookahead))
    check_streaming(source.model, decoding)
    return Stream(_recogniser_of(source), decoding)


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
