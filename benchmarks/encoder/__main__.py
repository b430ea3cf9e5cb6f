"""Does joint distillation and pruning win on real speech? Every model of the comparison, made and probed.

    python -m benchmarks.encoder SPEECH --work DIRECTORY [--workers N] [--teacher DIRECTORY] [--results DIRECTORY]

SPEECH has folders with a manifest.jsonl each, arabic_commands among them (see corpus.py); --work takes decoded audio
and models, --results a JSON for each. What is there is not made again, what was begun goes on. Without --teacher one is
pretrained first, which took two processes 100 minutes on two cores.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

import torch

from benchmarks.encoder import pretraining
from benchmarks.encoder.bench import Bench, Places, worker
from benchmarks.encoder.corpus import prepare, training_manifest
from benchmarks.workers import number_of_workers, run_workers
from diminuendo.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoder", description=__doc__.splitlines()[0])
    parser.add_argument("speech", type=Path, help="folders with a manifest.jsonl each, arabic_commands among them")
    parser.add_argument("--work", type=Path, required=True, help="where models and decoded audio go")
    parser.add_argument(
        "--teacher", type=Path, help="one that pretraining.py made; default: WORK/teacher, made where it is not"
    )
    parser.add_argument("--results", type=Path, help="where results go, and those to go on from; default: WORK/results")
    parser.add_argument(
        "--workers", type=number_of_workers, default=os.cpu_count() or 1, help="processes of one thread each"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else workers would outlive a kill, for hours
    teacher, results = given.teacher or given.work / "teacher", given.results or given.work / "results"
    try:
        manifest = training_manifest(prepare(given.speech, given.work))
        if given.teacher is None:
            pretraining.launch(manifest, teacher)
        places = Places(given.speech, given.work, teacher, results)
        Bench(places)  # what is wrong with these is found here
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    run_workers(worker, given.workers, places)
    if not (results / "warmed-up.json").is_file():  # last: it says least, and takes all processors
        pretraining.launch(manifest, given.work / "warmed-up", warm_up_only=True)
        run_workers(worker, 1, places)


if __name__ == "__main__":
    main()
