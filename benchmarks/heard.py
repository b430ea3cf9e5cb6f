"""How long models take from the waveform on, what they hear included: normalisation, or filter banks."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

from diminuendo.families import model_inputs
from diminuendo.families.inputs import SAMPLING_RATE


def hearing(model: Any, extractor: Any, seconds: float) -> Callable[[], Any]:
    """A pass over a clip of noise, batch 1."""
    samples = round(seconds * SAMPLING_RATE)
    clip = 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(0))
    return lambda: model(**model_inputs(extractor, clip, torch.tensor([samples])))


def median_ms(passes: Mapping[str, Callable[[], Any]], runs: int, threads: int) -> dict[str, float]:
    """Of passes in turn, the first of which only warm up."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            turns = [{name: _milliseconds(run) for name, run in passes.items()} for _ in range(runs + 2)][2:]
    finally:
        torch.set_num_threads(before)
    return {name: round(median(turn[name] for turn in turns), 2) for name in passes}


def _milliseconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - started)
