"""The command line: parses, calls, prints.

Exit status 0: done; 2: the input is wrong, one line says how; 130: interrupted; 1: anything else.
"""

import errno
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer._click.exceptions import ClickException

from diminuendo import cli_recognisers, cli_text
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
    Steps,
    Threads,
    is_main_process,
    prepare,
    show,
)
from diminuendo.errors import Interrupted, UserError

INTERRUPTED = 130  # what typer makes of Ctrl-C
# What a file system refuses is nobody's bug: a full disk, a folder that is not one's own, a name too long.
REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}

app = typer.Typer(
    name="diminuendo",
    help="Makes speech models small: joint distillation and structured pruning, with proof.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command()
def compress(
    model: ModelArgument,
    data: DataArgument,
    out: Out,
    keep: Annotated[
        str | None, typer.Option(help="Like params=0.25, params=23.5M, macs=1.2G/s or latency=40ms.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A complete configuration; flags override single values.",
            show_default="dphubert, or what --student names",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="l0, lowrank, l0+lowrank learn what goes; random, magnitude, taylor, layerdrop do not."),
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="Made by hand: thin, deep-thin, shallow-wide, or like layers=6,width=384.")
    ] = None,
    input: Annotated[
        str | None,
        typer.Option(
            help="fbank: filter banks in the place of the waveform; fbank-plain: as published, with clips' level."
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Learn it at the same time: own (MODEL's), ctc, rnnt, ctc+rnnt; DATA has texts.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Of a new head: characters, pieces or words (default: MODEL's, or characters).")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Whose states are learned (default: MODEL).")] = None,
    width: Annotated[bool | None, typer.Option("--width", help="The residual stream may become narrower too.")] = None,
    round_to: Annotated[int | None, typer.Option(help="Kept widths are multiples of this (default 8).")] = None,
    steps: Steps = None,
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
    """Learn what of MODEL can go, remove it, and distil the rest."""
    prepare(threads, quiet)
    from diminuendo import api
    from diminuendo.training.compress_config import CompressConfig
    from diminuendo.training.config import LoopConfig

    result = api.compress_to_result(
        model,
        data,
        out,
        recipe=recipe,
        teacher=teacher,
        split=split,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        loop=LoopConfig(device=device, quiet=quiet),
        **api.read_settings(
            CompressConfig,
            settings or (),
            keep=keep,
            method=method,
            student=student,
            input=input,
            task=task,
            tokens=tokens,
            width=width,
            round_to=round_to,
            steps=steps,
            seconds_per_batch=seconds_per_batch,
            accumulate=accumulate,
            seed=seed,
            precision=precision,
        ),
    )
    if not is_main_process():
        return
    show(result, as_json, cli_text.dry_run_text if dry_run else cli_text.compress_text)


# Here, as help lists commands in the order in which they are registered.
app.command()(cli_recognisers.finetune)
app.command()(cli_recognisers.evaluate)
app.command()(cli_recognisers.transcribe)


@app.command()
def pretrain(
    configuration: Annotated[str, typer.Argument(help="A named one like tiny-hubert, or a config.json.")],
    data: DataArgument,
    out: Out,
    steps: Annotated[int | None, typer.Option(help="Steps of all stages together.")] = None,
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
    """Train an encoder on audio alone: by HuBERT's clusters if it reads waveforms, by BEST-RQ if it reads features."""
    prepare(threads, quiet)
    from diminuendo import api
    from diminuendo.training.config import LoopConfig

    result = api.pretrain(
        configuration,
        data,
        out,
        split=split,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        loop=LoopConfig(device=device, quiet=quiet),
        **api.read_settings(
            api.pretrain_config(configuration),
            settings or (),
            steps=steps,
            seconds_per_batch=seconds_per_batch,
            accumulate=accumulate,
            seed=seed,
            precision=precision,
        ),
    )
    if is_main_process():
        show(result, as_json, cli_text.pretrain_dry_run_text if dry_run else cli_text.pretrain_text)


@app.command()
def demo(
    out: Out = Path("demo"),
    data: Annotated[Path | None, typer.Option(help="Audio to use instead of a synthetic corpus.")] = None,
    probe_data: Annotated[Path | None, typer.Option(help="Labelled clips for the probe (default: the audio).")] = None,
    probe: Annotated[str, typer.Option(help="keyword or speaker.")] = "keyword",
    encoder: Annotated[str | None, typer.Option(help="What is pretrained: a named configuration.")] = None,
    pretrain_steps: Annotated[int | None, typer.Option(help="Steps of pretraining.")] = None,
    steps: Steps = None,
    seed: Seed = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The whole story, offline: make a corpus, pretrain, compress to a quarter, compare, report."""
    prepare(threads, quiet)
    from dataclasses import replace

    from diminuendo import demo as story
    from diminuendo.training.config import LoopConfig

    pretraining, compression = story.demo_configs(seed or 0)
    try:
        result = story.demo(
            out,
            data,
            probe_data=probe_data,
            probe=probe,
            pretraining=pretraining if pretrain_steps is None else replace(pretraining, steps=pretrain_steps),
            compression=compression if steps is None else replace(compression, steps=steps),
            encoder=encoder or story.ENCODER,
            loop=LoopConfig(device=device, quiet=quiet),
        )
    except (Interrupted, KeyboardInterrupt):
        raise Interrupted("interrupted; the same command goes on where it was") from None
    show(result, as_json, lambda r: f"{story.table_text(r['table'])}\n\nmodel: {r['model']}\nreport: {r['report']}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Directories that compress, pretrain or finetune wrote.")],
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    as_json: Json = False,
) -> None:
    """One HTML file about runs: figures, layer map, curves, configuration."""
    prepare(None, quiet=True)
    from diminuendo.report.write import write_report

    show({"report": str(write_report(runs, out))}, as_json, lambda r: r["report"])


@app.command()
def profile(
    model: ModelArgument,
    seconds: Annotated[float, typer.Option(help="Length of the clip that is timed.")] = 10.0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    runs: Annotated[int, typer.Option(help="Timed runs.")] = 20,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What MODEL costs: parameters, MACs, bytes, latency, features, real-time factor, memory."""
    prepare(threads, quiet)
    from diminuendo import api

    show(api.profile(model, seconds=seconds, threads=threads, runs=runs), as_json, cli_text.profile_text)


@app.command()
def students(
    model: ModelArgument,
    keep: Annotated[str, typer.Option(help="Like params=0.25 or params=23.5M.")] = "params=0.25",
    seconds: Annotated[float, typer.Option(help="Length of the clip that is timed.")] = 10.0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    runs: Annotated[int, typer.Option(help="Timed runs.")] = 20,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The students of MODEL's encoder that could be made by hand, and what they cost."""
    prepare(threads, quiet)
    from diminuendo import api

    rows = api.students(model, keep, seconds=seconds, threads=threads, runs=runs)
    show({"students": rows}, as_json, cli_text.students_text)


@app.command()
def sensitivity(
    model: ModelArgument,
    data: DataArgument,
    out: Annotated[Path | None, typer.Option(help="A directory for result.json and the plot.")] = None,
    seconds: Annotated[float, typer.Option(help="Audio to measure on, about; at most all there is.")] = 60.0,
    device: Device = "auto",
    threads: Threads = None,
    split: Split = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """How far MODEL's hidden states move when one axis is cut to half, for every axis."""
    prepare(threads, quiet)
    from diminuendo import api

    result = api.sensitivity(model, data, out, seconds=seconds, split=split, device=device, quiet=quiet)
    show(result, as_json, cli_text.sensitivity_text)


def main() -> None:
    """Runs the command line and exits."""
    try:
        status = app(standalone_mode=False) or 0
        if status == INTERRUPTED:
            raise KeyboardInterrupt
    except (UserError, ClickException) as error:
        message = error.format_message() if isinstance(error, ClickException) else str(error)
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        status = INTERRUPTED if isinstance(error, Interrupted) else 2
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print(
            "error: interrupted; compress, pretrain and finetune go on with the same command and --resume",
            file=sys.stderr,
        )
        status = INTERRUPTED
    sys.exit(status)
