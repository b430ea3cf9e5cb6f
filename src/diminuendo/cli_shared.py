"""What the commands share: options, and what comes before and after their work."""

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from diminuendo.errors import UserError

ModelArgument = Annotated[
    str, typer.Argument(help="A directory, or a hub id: an original, a recogniser, or a model compressed before.")
]
DataArgument = Annotated[
    str, typer.Argument(help="A JSON-lines manifest, a lhotse, Shar or Kaldi directory, or a folder of audio.")
]
Out = Annotated[Path, typer.Option(help="Where the model and the run's log go.")]
Steps = Annotated[int | None, typer.Option(help="Steps of the first (joint) stage.")]
SecondsPerBatch = Annotated[float | None, typer.Option(help="Seconds of audio a batch, for every process.")]
Accumulate = Annotated[int | None, typer.Option(help="Batches an optimiser step.")]
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
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what the run takes, and what a budget can reach; write nothing.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]


def prepare(threads: int | None, quiet: bool) -> None:
    """Threads, and a standard error that holds only what concerns the user."""
    if threads is not None and threads < 1:
        raise UserError(f"--threads must be at least 1, got {threads}")
    warnings.filterwarnings("ignore", module="(?!diminuendo)")
    level = logging.WARNING if quiet or not is_main_process() else logging.INFO
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


def is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def show(result: dict[str, Any], as_json: bool, text: Any) -> None:
    print(json.dumps(result) if as_json else text(result))
