"""Does it pay to prune, to distil and to learn to recognise in one run? The grid of small recognisers, made and tested.

    python -m benchmarks.synergy SPEECH --work DIRECTORY [--results DIRECTORY] [--workers N]

SPEECH has folders with a manifest.jsonl each, arabic_commands and digits among them (see benchmarks/words/corpus.py);
--work takes audio and models, --results a JSON for each. What is there is not made again, what was begun goes on.
cells.py says what is compared, make.py how it is trained.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from benchmarks.synergy.bench import Places, check, lay_out, worker
from benchmarks.synergy.cells import grid
from benchmarks.workers import number_of_workers, run_workers
from diminuendo.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.synergy", description=__doc__.splitlines()[0])
    parser.add_argument("speech", type=Path, help="folders with a manifest.jsonl each; see benchmarks/words/corpus.py")
    parser.add_argument("--work", type=Path, required=True, help="where audio and models go")
    parser.add_argument("--results", type=Path, help="where results go, and those to go on from; default: WORK/results")
    parser.add_argument(
        "--workers", type=number_of_workers, default=os.cpu_count() or 1, help="processes of one thread each"
    )
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else workers would outlive a kill, for hours
    places = Places(given.speech, given.work, given.results or given.work / "results")
    try:
        lay_out(places)
        check(places, grid())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    run_workers(worker, given.workers, places)


if __name__ == "__main__":
    main()
