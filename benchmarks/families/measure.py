"""Everything that is measured of one model, in this process."""

import gc
import time
from typing import Any

import torch

from benchmarks.families import parts, removing
from benchmarks.families.models import Known
from benchmarks.step.clock import Clock
from diminuendo.families import family_of
from diminuendo.profiling.count import count_macs_per_second, count_parameters
from diminuendo.profiling.latency import measure_interleaved

SECONDS = 10.0
ROUNDED = (1, 16, 32)
"""Other multiples for widths, timed beside that of `removing.ROUND_TO`."""


def measure(known: Known, runs: int, seconds: float = SECONDS) -> dict[str, Any]:
    """Removal to a quarter, equality, and latency of one clip on one thread.

    "before" is transformers' own model; where our code for a teacher is faster than it, that one is timed too ("fast").
    """
    torch.set_num_threads(1)
    model = known.make()
    gated, smaller, found = removing.remove_a_quarter(model, width=known.width)
    error = removing.largest_error(smaller, gated.model, width=gated.select(removing.ROUND_TO).get("width"))
    others = {}
    for multiple in ROUNDED:
        selection = gated.select(multiple)
        others[f"round to {multiple}"] = gated.removed(selection, Clock(torch.device("cpu")))
    del gated
    gc.collect()
    timed = {"before": model, "after": smaller}
    fast = family_of(model).fast(model)
    if fast is not model:
        timed["fast"] = fast
    clock, cpu = time.perf_counter(), time.process_time()
    latencies = measure_interleaved({**timed, **others}, seconds, threads=1, runs=runs, warmup=1)
    busy = (time.process_time() - cpu) / (time.perf_counter() - clock)
    ms = {name: round(latency.p50_ms, 2) for name, latency in latencies.items()}
    macs = {name: count_macs_per_second(one, seconds) for name, one in (("before", model), ("after", smaller))}
    found |= {
        "title": known.title,
        "class": known.model,
        "configuration": {"base": f"transformers' defaults of {known.config}", "changed": known.changed},
        "parameters": {"before": count_parameters(model), "after": count_parameters(smaller)},
        "removal_error": error,
        "error_seconds": removing.COMPARED_SECONDS,
        "clip_seconds": seconds,
        "threads": 1,
        "runs": runs,
        "busy": round(busy, 3),
        "median_ms": ms,
        "macs_per_second": macs,
        "macs_ratio": round(macs["after"] / macs["before"], 4),
    }
    for name in ("before", "fast"):
        if name in ms:
            speed_up = ms[name] / ms["after"]
            found[f"speed_up_over_{name}"] = round(speed_up, 3)
            found[f"of_promise_over_{name}"] = round(speed_up * macs["after"] / macs["before"], 3)
    return found | {"parts": _parts(timed, runs, seconds)}


def _parts(timed: dict[str, Any], runs: int, seconds: float) -> dict[str, Any]:
    """Of each model time and MACs by part, and the share of time without MACs."""
    spent = parts.seconds_by_part(timed, seconds, min(runs, 3))
    return {
        name: {
            "seconds": spent[name],
            "gmacs": parts.gmacs_by_part(model, seconds),
            "share_without_macs": parts.share_without_macs(model, seconds),
        }
        for name, model in timed.items()
    }
