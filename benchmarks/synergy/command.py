"""The command line of a benchmark in the working directory of connected words."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.synergy.bench import Places, lay_out, take
from benchmarks.workers import number_of_workers, run_workers
from diminuendo.errors import UserError


def run_grid(
    module: str,
    description: str,
    check: Callable[[Places], None],
    worker: Callable[[Places, int], None],
    references: Sequence[str] = (),
    results: str = "results",
) -> None:
    """Reads the command line of `python -m module`, makes the audio, and has workers do the rest.

    check: raises UserError for results that cannot be gone on from. references: the names of the models that
    --references has, if there is anything to go on from. results: the folder of them in --work, if no other is given.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("speech", type=Path, help="folders with a manifest.jsonl each; see benchmarks/words/corpus.py")
    parser.add_argument("--work", type=Path, required=True, help="where audio and models go")
    parser.add_argument(
        "--results", type=Path, help=f"where results go, and those to go on from; default: WORK/{results}"
    )
    if references:
        parser.add_argument("--references", type=Path, help="where encoders and teachers are that are not made again")
    parser.add_argument(
        "--workers", type=number_of_workers, default=os.cpu_count() or 1, help="processes of one thread each"
    )
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else workers would outlive a kill, for hours
    places = Places(given.speech, given.work, given.results or given.work / results)
    try:
        lay_out(places)
        if references and given.references:
            take(given.references, references, places)
        check(places)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    run_workers(worker, given.workers, places)
