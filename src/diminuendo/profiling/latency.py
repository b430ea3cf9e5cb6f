"""What a model costs where it runs: latency, real-time factor, memory; and the profile that puts all costs together."""

import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from diminuendo.errors import UserError
from diminuendo.families.inputs import SAMPLING_RATE, model_inputs
from diminuendo.families.transducer import run
from diminuendo.profiling.allocator import freed_memory_kept
from diminuendo.profiling.count import (
    count_macs_per_second,
    count_parameters,
    evaluating,
    example_inputs,
    saved_bytes,
)

WHOLE, REST = "(whole)", "(rest)"


@dataclass(frozen=True)
class Latency:
    """Timings of one clip of `seconds`, batch 1, on `threads` threads.

    `real_time_factor` is the median time over the clip's length; `peak_memory_mb` (10^6 bytes) is the highest resident
    memory of the whole process since it started, so a model is measured alone in a fresh process to have its own.
    """

    p50_ms: float
    p95_ms: float
    real_time_factor: float
    seconds: float
    threads: int
    runs: int
    peak_memory_mb: float


def measure_latency(
    model: PreTrainedModel, seconds: float = 10.0, threads: int = 1, runs: int = 20, warmup: int = 3
) -> Latency:
    """Time `runs` forward passes after `warmup` unmeasured ones, in inference and evaluation mode.

    Raises:
        UserError: as `measure_interleaved`.
    """
    return measure_interleaved({"model": model}, seconds, threads, runs, warmup)["model"]


def measure_interleaved(
    models: Mapping[str, PreTrainedModel],
    seconds: float = 10.0,
    threads: int = 1,
    runs: int = 20,
    warmup: int = 3,
) -> dict[str, Latency]:
    """Time several models in turn (A B A B ...), so that a busy moment of the machine falls on all of them alike.

    Raises:
        UserError: `threads` or `runs` below 1, or a model that does not read waveforms.
    """
    if threads < 1 or runs < 1:
        raise UserError(f"threads and runs must be at least 1, got threads={threads}, runs={runs}")
    inputs = {name: example_inputs(model, seconds) for name, model in models.items()}
    times_ms: dict[str, list[float]] = {name: [] for name in models}
    with _threads(threads), freed_memory_kept(), torch.inference_mode():
        for run in range(warmup + runs):
            for name, model in models.items():
                elapsed_ms = _forward_ms(model, inputs[name])
                if run >= warmup:
                    times_ms[name].append(elapsed_ms)
    peak = peak_memory_mb()
    return {name: _latency(times, seconds, threads, peak) for name, times in times_ms.items()}


def time_modules(
    models: Mapping[str, PreTrainedModel],
    modules: Sequence[str],
    seconds: float,
    threads: int,
    rounds: Iterable[int],
) -> dict[str, dict[str, float]]:
    """Median milliseconds in every model of those of `modules` that it has, of the REST, and of the WHOLE pass.

    Models take turns, once in every round. One thread is timed by its processor time: on a busy machine long modules
    are interrupted and short ones are not. A GPU waits for every module that is timed: there a whole pass is timed
    apart, and what its parts took in the other is scaled to it.
    """
    met: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    inputs = {name: example_inputs(model, seconds) for name, model in models.items()}
    with _threads(threads), freed_memory_kept(), torch.inference_mode():
        for _ in rounds:
            for name, model in models.items():
                clock = time.thread_time if threads == 1 and model.device.type == "cpu" else time.perf_counter
                with _clocked(model, modules, clock) as spent:
                    clocked = _forward_ms(model, inputs[name], clock)
                spent |= {REST: clocked - sum(spent.values()), WHOLE: clocked}
                if model.device.type == "cuda":
                    scale = _forward_ms(model, inputs[name]) / clocked
                    spent = {part: scale * ms for part, ms in spent.items()}
                met[name].append(spent)
    return {name: {part: median(one[part] for one in found) for part in found[0]} for name, found in met.items()}


@contextmanager
def _clocked(model: PreTrainedModel, modules: Sequence[str], clock: Callable[[], float]) -> Iterator[dict[str, float]]:
    """Milliseconds that modules of a model have taken, filled while they run."""
    spent: dict[str, float] = {}
    known, hooks = dict(model.named_modules()), []

    def read(path: str, sign: int) -> Any:
        return lambda *_: spent.update({path: spent.get(path, 0.0) + sign * _now_ms(model.device, clock)})

    for path in modules:
        if path in known:
            hooks.append(known[path].register_forward_pre_hook(read(path, -1)))
            hooks.append(known[path].register_forward_hook(read(path, 1)))
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()


def profile(
    model: PreTrainedModel, extractor: Any, seconds: float = 10.0, threads: int = 1, runs: int = 20
) -> dict[str, Any]:
    """Every cost of a model, ready for JSON. `seconds` is the clip that is timed.

    Latency and real-time factor are of the model; `features_ms` is what its extractor takes before, on the CPU: filter
    banks, or normalisation of the waveform, as this package computes them. Multiply-accumulates are per second of audio
    for a clip of 10 s whatever `seconds` is: that is what budgets are stated in, and attention makes the figure depend
    on the clip.
    """
    latency = measure_latency(model, seconds, threads, runs)
    return {
        "params": count_parameters(model),
        "macs_per_second": count_macs_per_second(model),
        "bytes": saved_bytes(model),
        "latency_ms": {"p50": latency.p50_ms, "p95": latency.p95_ms},
        "features_ms": _features_ms(extractor, seconds, threads, runs),
        "real_time_factor": latency.real_time_factor,
        "peak_memory_mb": latency.peak_memory_mb,
        "threads": threads,
        "seconds": seconds,
    }


def _features_ms(extractor: Any, seconds: float, threads: int, runs: int, warmup: int = 3) -> float:
    """Median over `runs` of what an extractor takes for a clip of noise."""
    clip = 0.1 * torch.randn(1, round(seconds * SAMPLING_RATE), generator=torch.Generator().manual_seed(0))
    times_ms = []
    with _threads(threads), freed_memory_kept():
        for _ in range(warmup + runs):
            started = time.perf_counter()
            model_inputs(extractor, clip, torch.tensor([clip.shape[1]]))
            times_ms.append((time.perf_counter() - started) * 1000)
    return median(times_ms[warmup:])


def _forward_ms(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], clock: Callable[[], float] | None = None
) -> float:
    with evaluating(model):
        started = _now_ms(model.device, clock)
        run(model, inputs)
        return _now_ms(model.device, clock) - started


def _now_ms(device: torch.device, clock: Callable[[], float] | None) -> float:
    """What a clock (None: the wall's) says when all that was given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (clock or time.perf_counter)() * 1000


def _latency(times_ms: list[float], seconds: float, threads: int, peak_memory_mb: float) -> Latency:
    p50, p95 = torch.tensor(times_ms, dtype=torch.float64).quantile(torch.tensor([0.5, 0.95]).double()).tolist()
    return Latency(p50, p95, p50 / 1000 / seconds, seconds, threads, len(times_ms), peak_memory_mb)


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_memory_mb(device: torch.device | None = None) -> float:
    """The highest resident memory of this process so far, in 10^6 bytes; for a GPU what was allocated there."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    # Linux counts in kibibytes, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
