"""What a joint step costs at real size: seconds by part, beside its floor and beside the published code.

    python -m benchmarks.step [--published CHECKOUT] [--size base] [--seconds 10] [--device cuda]

Steps are on random audio with random weights. Ours and the published code take turns; a turn is a process of its own,
alone with the machine: of each state one step that is not measured, then one that is (on a GPU 5, then the median of
20). Every case is a JSON in results/step (results/step-cuda), and one that this commit has measured on this machine is
not measured again; python -m benchmarks.step.table prints them.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from benchmarks.record import RESULTS, commit, origin, record
from benchmarks.step import ours, published
from benchmarks.step.clock import Clock
from diminuendo.profiling.latency import peak_memory_mb

Who = Literal["ours", "published"]

RATE_SHAPES = {
    "cpu": ((2048, 2048, 2048), (2000, 768, 3072), (2000, 3072, 768)),
    "cuda": ((8192, 8192, 8192), (8000, 768, 3072), (8000, 3072, 768)),
}
NO_ROOM = 3
# What torch, oneDNN and C++ say where the system grants no more memory.
OUT_OF_MEMORY = ("allocate memory", "could not create a primitive", "bad_alloc", "CUDA out of memory")
# Steps before those that are measured, and these.
STEPS = {"cpu": (1, 1), "cuda": (5, 20)}


class Case(NamedTuple):
    """What is measured: `clips` clips of `seconds`."""

    size: str
    clips: int
    seconds: float
    precision: str
    threads: int
    device: str = "cpu"

    @property
    def path(self) -> Path:
        folder, end = ("step", f"_{self.threads}thread") if self.device == "cpu" else (f"step-{self.device}", "")
        return RESULTS / folder / f"{self.size}_{self.clips}x{self.seconds:g}s_{self.precision}{end}.json"


def audio(clips: int, seconds: float) -> Tensor:
    return torch.randn(clips, round(seconds * 16_000), generator=torch.Generator().manual_seed(0))


def matrix_rate(precision: str, device: torch.device) -> float:
    """Floating-point operations a second of the best of some matrix products of the model's sizes."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    best = 0.0
    for m, k, n in RATE_SHAPES[device.type]:
        a, b = torch.randn(m, k, dtype=dtype, device=device), torch.randn(k, n, dtype=dtype, device=device)
        for _ in range(7):
            clock = Clock(device)
            a @ b
            clock.mark("product")
            best = max(best, 2 * m * k * n / clock.seconds()["product"])
    return best


def turn(who: Who, case: Case, checkout: Path | None) -> dict[str, Any]:
    """The median step of each state, in this process: seconds by part, how busy its threads were, peak memory."""
    torch.set_num_threads(case.threads)
    device = torch.device(case.device)
    before, measured = STEPS[case.device]
    step: Any
    if who == "ours":
        step = ours.Step(case.size, case.precision, case.seconds, case.device)
    else:
        step = published.Step(checkout, case.size, case.precision, case.device)  # type: ignore[arg-type]
    waveforms = audio(case.clips, case.seconds).to(device)
    found: dict[str, Any] = {"parameters": step.parameters, "parts": {}, "busy": {}}
    for state in ours.STATES if who == "ours" else ("published",):
        if who == "ours":
            step.set(state)
        for _ in range(before):
            step(waveforms)
        if device.type == "cuda":
            torch.cuda.synchronize()
        cpu = time.process_time()
        steps = sorted((clock.seconds() for clock in [step(waveforms) for _ in range(measured)]), key=_whole)
        found["parts"][state] = steps[(measured - 1) // 2]
        if device.type == "cpu":  # who waits for a GPU is busy as well
            found["busy"][state] = round((time.process_time() - cpu) / sum(map(_whole, steps)) / case.threads, 3)
    if who == "ours":
        found["kept_at_target"] = step.kept
        found["flops"] = step.flops(waveforms)
    return found | {"peak_memory_mb": round(peak_memory_mb(device)), "rate": matrix_rate(case.precision, device)}


def _device_name(case: Case) -> str:
    return torch.cuda.get_device_name() if case.device == "cuda" else case.device


def _whole(parts: dict[str, float]) -> float:
    return sum(parts.values())


def in_a_process(who: Who, case: Case, checkout: Path | None) -> dict[str, Any] | None:
    """A turn of its own process; None if the machine has not so much memory."""
    words = [word for key, value in case._asdict().items() for word in (f"--{key}", str(value))]
    words += ["--published", str(checkout)] if checkout is not None else []
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.step", "--turn", who, *words], stdout=subprocess.PIPE, text=True
    )
    if done.returncode == NO_ROOM:
        return None
    done.check_returncode()
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def within_memory(who: Who, case: Case, checkout: Path | None) -> dict[str, Any]:
    """`turn`; status NO_ROOM if it takes more than nine tenths of the machine's memory, before the system chooses."""
    if case.device == "cpu":  # CUDA reserves more addresses than there is memory
        room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 9 // 10
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
    try:
        return turn(who, case, checkout)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY):
            raise SystemExit(NO_ROOM) from error
        raise


def summary(case: Case, turns: dict[Who, list[dict[str, Any]]]) -> dict[str, Any]:
    """Seconds and parts of every step, medians, floors, and ours over the published step where there is one.

    The parts of a state are those of its median step, the lower of two.
    """
    steps = {state: [made["parts"][state] for made in same] for same in turns.values() for state in same[0]["parts"]}
    seconds = {state: [round(_whole(parts), 6) for parts in same] for state, same in steps.items()}
    medians = {state: round(statistics.median(values), 6) for state, values in seconds.items()}
    first, rates = turns["ours"][0], [made["rate"] for same in turns.values() for made in same]
    kept = first["kept_at_target"]
    floors = {state: flops / max(rates) for state, flops in first["flops"].items()}
    found: dict[str, Any] = {
        "size": case.size,
        "clips": case.clips,
        "clip_seconds": case.seconds,
        "precision": case.precision,
        "threads": case.threads,
        "device": _device_name(case),
        "parameters": first["parameters"],
        "kept_at_target": {kind: round(fraction, 4) for kind, fraction in kept.items()},
        "seconds": seconds,
        "median_seconds": medians,
        "busy": {state: [made["busy"][state] for made in same] for same in turns.values() for state in same[0]["busy"]},
        "parts": {
            state: {
                part: round(value, 6)
                for part, value in steps[state][seconds[state].index(statistics.median_low(seconds[state]))].items()
            }
            for state in ours.STATES
        },
        "gflop": {state: round(flops / 1e9, 1) for state, flops in first["flops"].items()},
        "matrix_gflop_per_second": [round(rate / 1e9, 1) for rate in rates],
        "floor_seconds": {state: round(floor, 6) for state, floor in floors.items()},
        "over_floor": {state: round(medians[state] / floor, 3) for state, floor in floors.items()},
        "peak_memory_mb": {who: max(made["peak_memory_mb"] for made in same) for who, same in turns.items()},
    }
    if "published" in turns:
        # The same model, but for an embedding of masked frames here and a few biases there.
        theirs = turns["published"][0]["parameters"]
        assert abs(theirs / first["parameters"] - 1) < 1e-4, (theirs, first["parameters"])
        found["over_published"] = {state: round(medians[state] / medians["published"], 3) for state in ours.STATES}
    return found


def measure(case: Case, runs: int, checkout: Path | None) -> dict[str, Any]:
    """Ours and, with a checkout, the published code in turn; what does not fit into the machine's memory has no turns.

    Raises SystemExit if ours does not.
    """
    turns: dict[Who, list[dict[str, Any]]] = {}
    unfit: list[Who] = []
    for _ in range(runs):
        for who in ("ours", "published") if checkout is not None else ("ours",):
            if who in unfit:
                continue
            found = in_a_process(who, case, checkout)
            if found is not None:
                turns.setdefault(who, []).append(found)
            elif who == "ours":
                raise SystemExit(f"{case.path.stem}: a step does not fit into this machine's memory")
            else:
                unfit.append(who)
                turns.pop(who, None)
    return summary(case, turns) | {"does_not_fit": unfit, "runs": runs}


def measured(case: Case, runs: int, published_commit: str | None) -> bool:
    """Whether a result is there of this code, machine, device and published code, and of so many runs.

    Never where files differ from their commit, or no commit is known: then nobody can say what was measured.
    """
    now, path = origin() | {"device": _device_name(case)}, case.path
    if not path.is_file() or now["commit"] is None or now["commit"].endswith("-dirty"):
        return False
    found = json.loads(path.read_text())
    same = all(found[key] == now[key] for key in ("commit", "machine", "device"))
    return same and found["runs"] >= runs and found["published_commit"] == published_commit


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__.splitlines()[0])
    parser.add_argument("--published", type=Path, help="a checkout of the published DPHuBERT code, to measure beside")
    parser.add_argument("--size", choices=ours.SIZES, default="base")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0], help="of each clip")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", choices=tuple(STEPS), default="cpu", help="on cuda threads are not varied")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--turn", choices=("ours", "published"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.turn:
        case = Case(given.size, given.clips, given.seconds[0], given.precision[0], given.threads[0], given.device)
        print(json.dumps(within_memory(given.turn, case, given.published)))
        return
    published_commit = None if given.published is None else commit(given.published)
    threads = given.threads if given.device == "cpu" else [1]
    for seconds, precision, number in itertools.product(given.seconds, given.precision, threads):
        case = Case(given.size, given.clips, seconds, precision, number, given.device)
        if not measured(case, given.runs, published_commit):
            found = measure(case, given.runs, given.published)
            record(case.path, found | {"published_commit": published_commit})
        print(case.path, flush=True)


if __name__ == "__main__":
    main()
