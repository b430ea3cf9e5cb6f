"""What a joint step costs at real size: seconds by part, beside its floor and beside the published code.

    python -m benchmarks.step [--published CHECKOUT] [--growth]

Times are of CPU steps on random audio with random weights; ours and the published one take turns, in one process where
both fit into it. Memory is the peak of a process of its own; what needs more than four fifths of the machine's is left
out, and its peak is null. Every case is a JSON in results/step; python -m benchmarks.step.table prints them.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import RESULTS, commit, record
from benchmarks.step import ours, published
from diminuendo.profiling.latency import peak_memory_mb

Case = tuple[str, float, str, int]  # size, seconds of a clip, precision, threads

NO_ROOM = 3
RATE_SHAPES = ((2048, 2048, 2048), (2000, 768, 3072), (2000, 3072, 768))


def audio(clips: int, seconds: float) -> Tensor:
    return torch.randn(clips, round(seconds * 16_000), generator=torch.Generator().manual_seed(0))


def seconds_of(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def matrix_rate(precision: str) -> float:
    """Floating-point operations a second of the best of some matrix products of the model's sizes."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    best = 0.0
    for m, k, n in RATE_SHAPES:
        a, b = torch.randn(m, k, dtype=dtype), torch.randn(k, n, dtype=dtype)
        for _ in range(7):
            best = max(best, 2 * m * k * n / seconds_of(lambda a=a, b=b: a @ b))  # type: ignore[misc]
    return best


def measure(
    size: str, clips: int, seconds: float, precision: str, threads: int, runs: int, checkout: Path | None
) -> dict[str, Any]:
    """Ours at the start of a run and when the target is reached, and the published code's, in turn."""
    torch.set_num_threads(threads)
    waveforms = audio(clips, seconds)
    step = ours.Step(size, precision)
    theirs = published.Step(checkout, size, precision) if checkout is not None else None
    # The same model, but for an embedding of masked frames here and a few biases there.
    assert theirs is None or abs(theirs.parameters / step.parameters - 1) < 1e-4, (theirs.parameters, step.parameters)
    times: dict[str, list[float]] = {name: [] for name in (*ours.STATES, *(["published"] if theirs else []))}
    parts: dict[str, list[dict[str, float]]] = {name: [] for name in ours.STATES}
    rates = [matrix_rate(precision)]
    for run in range(runs + 1):  # the first is a warm-up
        for name in ours.STATES:
            step.set(name)
            times[name].append(seconds_of(lambda: step(waveforms)))
            if run > 0:
                parts[name].append(step.parts(waveforms))
        if theirs is not None:
            times["published"].append(seconds_of(lambda: theirs(waveforms)))
        rates.append(matrix_rate(precision))
    times = {name: values[1:] for name, values in times.items()}
    medians = _medians_of(times)
    flops = step.flops(waveforms)
    floor = flops / max(rates)
    result = {
        "size": size,
        "parameters": step.parameters,
        "kept_at_target": {kind: round(kept, 4) for kind, kept in step.kept.items()},
        "clips": clips,
        "clip_seconds": seconds,
        "precision": precision,
        "threads": threads,
        "runs": runs,
        "seconds": {name: [round(value, 3) for value in values] for name, values in times.items()},
        "median_seconds": medians,
        "parts": {name: _medians(found) for name, found in parts.items()},
        "gflop": round(flops / 1e9, 1),
        "matrix_gflop_per_second": round(max(rates) / 1e9, 1),
        "floor_seconds": round(floor, 3),
        "start_over_floor": round(medians["start"] / floor, 2),
    }
    return result | ratios(medians)


def ratios(medians: dict[str, float]) -> dict[str, Any]:
    """Ours over the published step, where there is one."""
    if "published" not in medians:
        return {}
    return {"over_published": {name: round(medians[name] / medians["published"], 3) for name in ours.STATES}}


def _medians(found: list[dict[str, float]]) -> dict[str, float]:
    return _medians_of({part: [step[part] for step in found] for part in found[0]})


def _medians_of(times: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(statistics.median(values), 3) for name, values in times.items()}


def alone(who: str, size: str, clips: int, seconds: float, precision: str, checkout: Path | None) -> None:
    """Prints, as JSON, the peak memory of this process and the seconds of steps, each the second of its kind.

    Status NO_ROOM if the machine has not so much memory.
    """
    room = machine_memory()
    resource.setrlimit(resource.RLIMIT_AS, (room, room))  # fail here rather than have the system choose a victim
    found = {}
    try:
        contender = ours.Step(size, precision) if who == "ours" else published.Step(checkout, size, precision)  # type: ignore[arg-type]
        waveforms = audio(clips, seconds)
        for name in ours.STATES if who == "ours" else ("published",):
            if isinstance(contender, ours.Step):
                contender.set(name)
            contender(waveforms)
            found[name] = round(seconds_of(lambda: contender(waveforms)), 3)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
            raise
        raise SystemExit(NO_ROOM) from error
    print(json.dumps({"peak_memory_mb": round(peak_memory_mb()), "seconds": found}))


def machine_memory() -> int:
    """Bytes of four fifths of the machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 4 // 5


def in_turn(turns: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Times of processes that took turns, each alone with the machine, as what does not fit in together has them."""
    names = {name: who for who, found in turns[0].items() for name in found["seconds"]}
    times = {name: [turn[who]["seconds"][name] for turn in turns] for name, who in names.items()}
    return {"seconds_apart": times, **ratios(_medians_of(times))}


def in_a_process(
    who: str, arguments: argparse.Namespace, size: str, seconds: float, precision: str, threads: int
) -> dict[str, Any]:
    """What `alone` prints in a process of its own; a peak of None if the machine has not so much memory."""
    options = {"--alone": who, "--size": size, "--clips": arguments.clips, "--seconds": seconds}
    options |= {"--precision": precision, "--threads": threads}
    if arguments.published is not None:
        options["--published"] = arguments.published
    words = [str(word) for option in options.items() for word in option]
    done = subprocess.run([sys.executable, "-m", "benchmarks.step", *words], stdout=subprocess.PIPE, text=True)
    if done.returncode == NO_ROOM:
        return {"peak_memory_mb": None, "seconds": {}}
    done.check_returncode()
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__.splitlines()[0])
    parser.add_argument("--published", type=Path, help="a checkout of the published DPHuBERT code, to measure beside")
    parser.add_argument("--growth", action="store_true", help="instead, clips of 2, 5 and 30 s, and HuBERT Large")
    parser.add_argument("--size", choices=ours.SIZES, default="base")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each clip")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--alone", choices=("ours", "published"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        torch.set_num_threads(given.threads[0])
        alone(given.alone, given.size, given.clips, given.seconds, given.precision[0], given.published)
        return
    cases = [(given.size, given.seconds)]
    if given.growth:
        cases = [("base", seconds) for seconds in (2.0, 5.0, 30.0)] + [("large", 10.0)]
    kinds = ["ours"] + ["published"] * (given.published is not None)

    def turn(case: Case) -> dict[str, dict[str, Any]]:
        return {who: in_a_process(who, given, *case) for who in kinds}

    # Before anything is held here: a process starts with the peak of the one that started it.
    first = {
        (*case, precision, threads): turn((*case, precision, threads))
        for case in cases
        for precision in given.precision
        for threads in given.threads
    }
    for case, alone_first in first.items():
        size, seconds, precision, threads = case
        peaks = {who: found["peak_memory_mb"] for who, found in alone_first.items()}
        if peaks["ours"] is None:
            print(f"{size}, {seconds:g} s, {precision}: not timed, a step does not fit into this machine's memory")
            continue
        both = None not in peaks.values() and sum(peaks.values()) * 1e6 < machine_memory()
        found = measure(size, given.clips, seconds, precision, threads, given.runs, given.published if both else None)
        if not both:
            found |= in_turn([alone_first, *(turn(case) for _ in range(given.runs - 1))])
        if given.published is not None:
            found["published_commit"] = commit(given.published)
        path = RESULTS / "step" / f"{size}_{seconds:g}s_{precision}_{threads}thread.json"
        print(record(path, found | {"peak_memory_mb": peaks}), flush=True)


if __name__ == "__main__":
    main()
