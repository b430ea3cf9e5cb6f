"""The commands of recognisers: train, evaluate, transcribe."""

from pathlib import Path
from typing import Annotated

import typer

from diminuendo import cli_text
from diminuendo.cli_shared import (
    Accumulate,
    DataArgument,
    Device,
    DryRun,
    Json,
    ModelArgument,
    Out,
    Overwrite,
    Precision,
    Quiet,
    Resume,
    SecondsPerBatch,
    Seed,
    Settings,
    Split,
    Threads,
    is_main_process,
    prepare,
    show,
)
from diminuendo.errors import UserError


def finetune(
    model: Annotated[
        str, typer.Argument(help="A directory or hub id; or a name like tiny-parakeet, for fresh weights.")
    ],
    data: DataArgument,
    out: Out,
    task: Annotated[
        str | None, typer.Option(help="ctc, rnnt, ctc+rnnt or tdt (default: MODEL's own; of an encoder ctc+rnnt).")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="characters, pieces or words (default: MODEL's own; of an encoder characters).")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps.")] = None,
    seconds_per_batch: SecondsPerBatch = None,
    accumulate: Accumulate = None,
    seed: Seed = None,
    precision: Precision = None,
    settings: Settings = None,
    device: Device = "auto",
    threads: Threads = None,
    split: Split = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a recogniser on MODEL's encoder, or go on with MODEL's own."""
    prepare(threads, quiet)
    from diminuendo import api
    from diminuendo.training.config import LoopConfig
    from diminuendo.training.finetune_config import FinetuneConfig

    result = api.finetune(
        model,
        data,
        out,
        split=split,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        loop=LoopConfig(device=device, quiet=quiet),
        **api.read_settings(
            FinetuneConfig,
            settings or (),
            task=task,
            tokens=tokens,
            steps=steps,
            seconds_per_batch=seconds_per_batch,
            accumulate=accumulate,
            seed=seed,
            precision=precision,
        ),
    )
    if is_main_process():
        show(result, as_json, cli_text.finetune_dry_run_text if dry_run else cli_text.finetune_text)


def evaluate(
    model: ModelArgument,
    data: DataArgument,
    probe: Annotated[
        str | None, typer.Option(help="keyword (test speakers unseen) or speaker (test takes unseen).")
    ] = None,
    against: Annotated[str | None, typer.Option(help="A second recogniser, for the paired difference.")] = None,
    beam: Annotated[int, typer.Option(min=1, help="1 decodes greedily.")] = 1,
    lookahead: Annotated[
        list[int] | None, typer.Option(help="Of a streaming model, in ms; several, each behind the flag: one by one.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Rows of this split (default: test; all, if no row names one).")
    ] = None,
    seed: Seed = None,
    max_clips: Annotated[int | None, typer.Option(min=1, help="At most so many clips.")] = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """A recogniser's word error rate; of an encoder, what a linear head finds in its frozen states."""
    prepare(threads, quiet)
    from diminuendo import api

    result = api.evaluate(
        model,
        data,
        probe,
        against=against,
        split=split,
        beam=beam,
        lookahead=lookahead if lookahead and len(lookahead) > 1 else next(iter(lookahead or ()), None),
        seed=seed or 0,
        max_clips=max_clips,
        device=device,
        quiet=quiet,
    )
    show(result, as_json, cli_text.evaluate_text)


def transcribe(
    model: ModelArgument,
    audio: Annotated[list[Path], typer.Argument(help="Audio files.")],
    beam: Annotated[int, typer.Option(min=1, help="1 decodes greedily.")] = 1,
    n_best: Annotated[int, typer.Option(min=1, help="Texts a file, of beam search.")] = 1,
    lookahead: Annotated[int | None, typer.Option(help="Of a streaming model, in ms.")] = None,
    streaming: Annotated[bool, typer.Option("--streaming", help="Hear files as they would come, bit by bit.")] = False,
    chunk_ms: Annotated[
        int | None, typer.Option(help="Audio that comes at once, in ms (default: what the lookahead needs).")
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What a recogniser hears in audio files."""
    prepare(threads, quiet)
    from diminuendo import api

    found = api.transcribe(
        model,
        audio,
        beam=beam,
        n_best=n_best,
        lookahead=lookahead,
        streaming=streaming,
        chunk_ms=chunk_ms,
        device=device,
        **({} if quiet else {"tell": cli_text.print_heard}),
    )
    show({"transcripts": found}, as_json, cli_text.transcripts_text)
    if broken := [one for one in found if "error" in one]:
        more = f" (and {len(broken) - 1} more of {len(found)} files)" if len(broken) > 1 else ""
        raise UserError(
            f"{broken[0]['audio']}: {broken[0]['error']}{more}; expected audio that can be read to its end, and finite "
            "samples"
        )
