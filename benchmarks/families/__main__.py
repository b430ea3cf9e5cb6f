"""Models of real size of every family: what removal takes, and how much faster a quarter of their parameters runs.

    python -m benchmarks.families [NAME ...] [--runs 5]

Weights are random, audio is noise. Each model is measured in a process of its own, on one thread; each is a JSON in
results/families, and one that this commit has measured on this machine is not measured again. python -m
benchmarks.families.table prints them.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.families.measure import measure
from benchmarks.families.models import MODELS
from benchmarks.record import RESULTS, origin, record

FOLDER = RESULTS / "families"


def measured(path: Path, runs: int) -> bool:
    """Whether a result is there of this code and machine and of so many runs; never with uncommitted changes."""
    now = origin()
    if not path.is_file() or now["commit"] is None or now["commit"].endswith("-dirty"):
        return False
    found = json.loads(path.read_text())
    return all(found[key] == now[key] for key in ("commit", "machine")) and found["runs"] >= runs


def in_a_process(name: str, runs: int) -> dict[str, Any]:
    """`measure` in a process of its own, so that its memory is the model's alone."""
    words = [sys.executable, "-m", "benchmarks.families", name, "--runs", str(runs), "--here"]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODELS)}; all, if none is given")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if unknown := set(given.names) - set(MODELS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(MODELS)}")
    if given.here:
        print(json.dumps(measure(MODELS[given.names[0]], given.runs)))
        return
    for name in given.names or MODELS:
        path = FOLDER / f"{name}.json"
        if not measured(path, given.runs):
            load = os.getloadavg()[0]
            record(path, {"load_before": round(load, 2), **in_a_process(name, given.runs)})
        print(path, flush=True)


if __name__ == "__main__":
    main()
