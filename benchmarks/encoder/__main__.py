"""Does joint distillation and pruning win on real speech? Every model of the comparison, made and probed.

    python -m benchmarks.encoder SPEECH --work DIRECTORY [--workers N]

SPEECH has folders with a manifest.jsonl each, arabic_commands among them (see corpus.py); DIRECTORY takes the models,
and a JSON for each in its results/. What is there is not made again, what was begun goes on.
"""

import argparse
import multiprocessing
import os
import sys
from pathlib import Path

import torch

from benchmarks.encoder.bench import Bench, worker
from diminuendo.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoder", description=__doc__.splitlines()[0])
    parser.add_argument("speech", type=Path, help="folders with a manifest.jsonl each, arabic_commands among them")
    parser.add_argument("--work", type=Path, required=True, help="where models and decoded audio go")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of one thread each")
    given = parser.parse_args()
    torch.set_num_threads(1)
    try:
        Bench(given.speech, given.work)  # the teacher, before the workers need it
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    processes = [
        multiprocessing.get_context("spawn").Process(target=worker, args=(given.speech, given.work, number))
        for number in range(given.workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
