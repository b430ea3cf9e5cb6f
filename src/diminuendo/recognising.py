"""Recognisers, from Python: trained, evaluated, listening to files and to what comes from a microphone."""

import copy
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet

from diminuendo.data.audio import Reason, Skipped
from diminuendo.data.batching import NoneUsable
from diminuendo.data.files import check_files, whole_file
from diminuendo.data.manifest import read_cuts
from diminuendo.data.tokens import load_tokens
from diminuendo.errors import UserError
from diminuendo.evaluation.recognition import recognition_errors
from diminuendo.evaluation.streaming import Heard, Stream, check_streaming, streamed
from diminuendo.evaluation.transcripts import (
    Decoding,
    Recogniser,
    Transcript,
    batches_of,
    check_decoding,
    seconds_per_frame,
    transcripts,
)
from diminuendo.families import Model, family_of
from diminuendo.given import given, placed, source_of
from diminuendo.training import finetune as finetuning
from diminuendo.training.config import LoopConfig
from diminuendo.training.configurations import CONFIGURATIONS, read_configuration
from diminuendo.training.finetune_config import FinetuneConfig
from diminuendo.training.own_prediction import encoder_of, extractor_of
from diminuendo.training.progress import tracked
from diminuendo.training.removing import Source

log = logging.getLogger(__name__)

NOTHING_SAID: tuple[Reason, ...] = ("empty", "silent", "too short")


def finetune(
    model: str | Path | Model,
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
    """Trains a recogniser, from an encoder or from another one, into the directory `out`; returns the run's result.

    model: or a name in training.configurations, for an encoder with fresh weights.
    settings: fields of FinetuneConfig, like task="ctc+rnnt" or tokens="pieces". With `dry_run` nothing is written, and
    what the run would take is returned. A model that is given as an object is left as it is.
    """
    config = FinetuneConfig(**given(FinetuneConfig, settings))
    if isinstance(model, str) and model in CONFIGURATIONS:
        source = _fresh(model, config.seed)
    else:
        source = source_of(model)
        if not isinstance(model, str | Path):
            source = replace(source, model=copy.deepcopy(source.model))
    cuts = read_cuts(data, split)
    if dry_run:
        return finetuning.dry_run(source, cuts, config, loop=loop)
    return finetuning.finetune(source, cuts, Path(out), config, loop=loop, resume=resume, overwrite=overwrite)


def _fresh(name: str, seed: int) -> Source:
    configuration = read_configuration(name)
    torch.manual_seed(seed)
    return Source(encoder_of(configuration), extractor_of(configuration), name)


def word_errors(
    source: Source,
    data: str | Path,
    *,
    against: Source | None = None,
    split: str | None = None,
    beam: int = 1,
    lookahead: int | Sequence[int] | None = None,
    seed: int = 0,
    max_clips: int | None = None,
    quiet: bool = True,
) -> dict[str, Any]:
    """What `api.evaluate` gives for a recogniser, where it is placed; its arguments are those."""
    asked = [*lookahead] if isinstance(lookahead, Sequence) else [lookahead]
    decodings = {ms: Decoding(beam=beam, lookahead=_lookahead_frames(source.model, ms)) for ms in asked}
    for decoding in decodings.values():
        check_decoding(source.model, decoding)
    other = None if against is None else _other(against, Decoding(beam=beam))
    cuts = read_cuts(data, split, default_split="test")
    if max_clips is not None:
        cuts = cuts.subset(first=max_clips)
    recogniser = _recogniser_of(source)
    found = {
        ms: recognition_errors(
            recogniser,
            cuts,
            decoding,
            other=other,
            seed=seed,
            progress=lambda batches, total: tracked(batches, "evaluate", "batches", quiet, total),
        )[0]
        for ms, decoding in decodings.items()
    }
    return {"lookaheads": found} if isinstance(lookahead, Sequence) else found[lookahead]


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

    beam, n_best: of beam search; the `others` are the next best texts. lookahead: of a streaming model, in ms. The text
    of a file that is silent, or shorter than 0.1 s, is empty. Raises UserError for files that are no audio; of one that
    turns out to be broken further on there is `error` alone, so that the others are not lost.

    streaming: each file comes in chunks of `chunk_ms` (None: as many as the lookahead needs), as it would from a
    microphone; then there is `streaming` too where something is heard, with the fields of evaluation.streaming.Cost.
    tell: called with the file and what is heard so far whenever the text has changed.
    """
    check_files(audio)
    source = placed(model, device)
    decoding = Decoding(beam=beam, n_best=n_best, lookahead=_lookahead_frames(source.model, lookahead))
    (check_streaming if streaming else check_decoding)(source.model, decoding)
    if chunk_ms is not None and not streaming:
        raise UserError("--chunk-ms: without --streaming files are heard whole; give --streaming too")
    recogniser = _recogniser_of(source)
    cuts = CutSet([whole_file(str(i), path) for i, path in enumerate(audio)])
    skipped = Skipped(named=False)
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
        found = {}
        with suppress(NoneUsable):
            whole = transcripts(recogniser, batches_of(recogniser, cuts, skipped=skipped), decoding)
            found = {one.id: asdict(one) for one in whole}
    for clip, reason in skipped.reasons.items():
        if reason not in NOTHING_SAID:
            found[clip] = {"error": reason}
            continue
        log.warning("%s: %s, nothing is heard in it", audio[int(clip)], reason)
        found[clip] = asdict(Transcript(clip, "", (), 0.0))
    return [{"audio": str(path), **found[str(i)]} for i, path in enumerate(audio)]


def stream(model: str | Path | Model, *, lookahead: int | None = None, device: str = "auto") -> Stream:
    """One utterance of any length, heard while it comes. UserError for a model that cannot stream.

        utterance = stream("model", lookahead=80)
        for samples in microphone: print(utterance.push(samples).text)
        print(utterance.finish().text)

    samples: 16 kHz, mono, floats within [-1, 1], in chunks of any size. lookahead: in ms (None: the model's own).
    """
    source = placed(model, device)
    decoding = Decoding(lookahead=_lookahead_frames(source.model, lookahead))
    check_streaming(source.model, decoding)
    return Stream(_recogniser_of(source), decoding)
