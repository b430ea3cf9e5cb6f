"""The command line: parses, calls, prints.

Exit status 0: done; 2: the input is wrong, one line says how; 130: interrupted; 1: anything else.
"""

import errno
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from typer._click.exceptions import ClickException

from diminuendo import cli_text
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

MODEL = typer.Argument(help="A directory, or a hub id: an original, a recogniser, or a model compressed before.")
DATA = typer.Argument(help="A JSON-lines manifest, a lhotse, Shar or Kaldi directory, or a folder of audio.")

ModelArgument = Annotated[str, MODEL]
DataArgument = Annotated[str, DATA]
Out = Annotated[Path, typer.Option(help="Where the model and the run's log go.")]
Steps = Annotated[int | None, typer.Option(help="Steps of the first (joint) stage.")]
SecondsPerBatch = Annotated[float | None, typer.Option(help="Seconds of audio a batch, for every process.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything that is drawn.")]
Precision = Annotated[str | None, typer.Option(help="fp32 or bf16 (autocast).")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: as many as torch chooses.")]
Split = Annotated[str | None, typer.Option(help="Rows of this split (default: train; all, if no row names one).")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other setting, like learning_rate=1e-4; may be repeated."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out; start it if there is none.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what a run left in --out.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what the run can reach and what it takes; write nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]


@app.command()
def compress(
    model: ModelArgument,
    data: DataArgument,
    out: Out,
    keep: Annotated[
        str | None, typer.Option(help="Like params=0.25, params=23.5M, macs=1.2G/s or latency=40ms.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="A complete configuration; flags override single values.")] = "dphubert",
    method: Annotated[
        str | None,
        typer.Option(help="l0, lowrank, l0+lowrank learn what goes; random, magnitude, taylor, layerdrop do not."),
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
    accumulate: Annotated[int | None, typer.Option(help="Batches an optimiser step.")] = None,
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
    _prepare(threads, quiet)
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
    if not _is_main_process():
        return
    _print(result, as_json, cli_text.dry_run_text if dry_run else cli_text.compress_text)


@app.command()
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
    accumulate: Annotated[int | None, typer.Option(help="Batches an optimiser step.")] = None,
    seed: Seed = None,
    precision: Precision = None,
    settings: Settings = None,
    device: Device = "auto",
    threads: Threads = None,
    split: Split = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a recogniser on MODEL's encoder, or go on with MODEL's own."""
    _prepare(threads, quiet)
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
    if _is_main_process():
        _print(result, as_json, cli_text.finetune_text)


@app.command()
def evaluate(
    model: ModelArgument,
    data: DataArgument,
    probe: Annotated[
        str | None, typer.Option(help="keyword (test speakers unseen) or speaker (test takes unseen).")
    ] = None,
    against: Annotated[str | None, typer.Option(help="A second recogniser, for the paired difference.")] = None,
    beam: Annotated[int, typer.Option(min=1, help="1 decodes greedily.")] = 1,
    lookahead: Annotated[int | None, typer.Option(help="Of a streaming model, in ms.")] = None,
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
    _prepare(threads, quiet)
    from diminuendo import api

    result = api.evaluate(
        model,
        data,
        probe,
        against=against,
        split=split,
        beam=beam,
        lookahead=lookahead,
        seed=seed or 0,
        max_clips=max_clips,
        device=device,
        quiet=quiet,
    )
    _print(result, as_json, cli_text.evaluate_text)


@app.command()
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
    _prepare(threads, quiet)
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
    _print({"transcripts": found}, as_json, cli_text.transcripts_text)


@app.command()
def pretrain(
    configuration: Annotated[str, typer.Argument(help="A named one like tiny-hubert, or a config.json.")],
    data: DataArgument,
    out: Out,
    steps: Annotated[int | None, typer.Option(help="Steps of all stages together.")] = None,
    seconds_per_batch: SecondsPerBatch = None,
    accumulate: Annotated[int | None, typer.Option(help="Batches an optimiser step.")] = None,
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
    _prepare(threads, quiet)
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
    if _is_main_process():
        _print(result, as_json, cli_text.pretrain_dry_run_text if dry_run else cli_text.pretrain_text)


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
    _prepare(threads, quiet)
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
    _print(result, as_json, lambda r: f"{story.table_text(r['table'])}\n\nmodel: {r['model']}\nreport: {r['report']}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Directories that compress, pretrain or finetune wrote.")],
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    as_json: Json = False,
) -> None:
    """One HTML file about runs: figures, layer map, curves, configuration."""
    _prepare(None, quiet=True)
    from diminuendo.report.write import write_report

    _print({"report": str(write_report(runs, out))}, as_json, lambda r: r["report"])


@app.command()
def profile(
    model: ModelArgument,
    seconds: Annotated[float, typer.Option(help="Length of the clip that is timed.")] = 10.0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    runs: Annotated[int, typer.Option(help="Timed runs.")] = 20,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What MODEL costs: parameters, MACs, bytes, latency, real-time factor, memory."""
    _prepare(threads, quiet)
    from diminuendo import api

    _print(api.profile(model, seconds=seconds, threads=threads, runs=runs), as_json, cli_text.profile_text)


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
    _prepare(threads, quiet)
    from diminuendo import api

    result = api.sensitivity(model, data, out, seconds=seconds, split=split, device=device, quiet=quiet)
    _print(result, as_json, cli_text.sensitivity_text)


def _prepare(threads: int | None, quiet: bool) -> None:
    """Threads, and a standard error that holds only what concerns the user."""
    if threads is not None and threads < 1:
        raise UserError(f"--threads must be at least 1, got {threads}")
    warnings.filterwarnings("ignore", module="(?!diminuendo)")
    level = logging.WARNING if quiet or not _is_main_process() else logging.INFO
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.getLogger("diminuendo").setLevel(level)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    import transformers

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _print(result: dict[str, Any], as_json: bool, text: Any) -> None:
    print(json.dumps(result) if as_json else text(result))


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
