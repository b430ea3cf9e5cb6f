"""Where in a forward pass time and multiply-accumulates are."""

import re
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from diminuendo.families import Model
from diminuendo.families.transducer import run
from diminuendo.profiling.allocator import freed_memory_kept
from diminuendo.profiling.count import example_inputs

# By a module's path in an encoder, or in the encoder of a recogniser.
_PARTS = {
    "front end": r"feature_extractor|feature_projection|subsampling",
    "positional": r"pos_conv_embed",
    "attention": r"layers\.\d+\.(attention|self_attn)",
    "feed-forward": r"layers\.\d+\.(feed_forward\d?|ffn\d)",
    "convolution": r"layers\.\d+\.(conv|conv_module)",
}
PARTS = (*_PARTS, "rest")
# What the flop counter counts; all else (norms, activations, softmax, copies) has no MACs.
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mkldnn_convolution", "mkldnn_linear", "linear", "slow_conv", "thnn_conv")


def part_of(path: str) -> str | None:
    """The part that a module is, if it is one."""
    found = [part for part, pattern in _PARTS.items() if re.fullmatch(rf"(encoder\.)?({pattern})", path)]
    return found[0] if found else None


def by_part(model: Model, inputs: Mapping[str, Tensor], now: Callable[[], float]) -> dict[str, float]:
    """How far `now` (a clock, a counter) goes on while each part of a pass runs; "rest" is what is in none."""
    spent = dict.fromkeys(PARTS, 0.0)
    hooks = []

    def before(part: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            spent[part] -= now()

        return hook

    def after(part: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            spent[part] += now()

        return hook

    for path, module in model.named_modules():
        if part := part_of(path):
            hooks += [module.register_forward_pre_hook(before(part)), module.register_forward_hook(after(part))]
    started = now()
    try:
        run(model, inputs)
    finally:
        for added in hooks:
            added.remove()
    spent["rest"] = now() - started - sum(spent.values())
    return spent


@torch.no_grad()
def gmacs_by_part(model: Model, seconds: float) -> dict[str, float]:
    """10^9 MACs of a clip; of a transducer, without what runs for every label."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        counted = by_part(model, example_inputs(model, seconds), lambda: counter.get_total_flops() / 2e9)
    return {part: round(value, 7) for part, value in counted.items()}


@torch.inference_mode()
def seconds_by_part(models: Mapping[str, Model], seconds: float, runs: int) -> dict[str, dict[str, float]]:
    """Medians of the parts of one clip, the models in turn, after one pass each that is not counted."""
    inputs = {name: example_inputs(model, seconds) for name, model in models.items()}
    met: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    with freed_memory_kept():  # as latency is measured, which the parts add up to
        for _ in range(1 + runs):
            for name, model in models.items():
                met[name].append(by_part(model, inputs[name], time.perf_counter))
    return {
        name: {part: round(statistics.median(spent[part] for spent in found[1:]), 6) for part in PARTS}
        for name, found in met.items()
    }


@torch.inference_mode()
def share_without_macs(model: Model, seconds: float) -> float:
    """The share of a pass's time in operations that multiply no matrices."""
    inputs = example_inputs(model, seconds)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run(model, inputs)
    products = whole = 0.0
    for event in profiler.key_averages():
        whole += event.self_cpu_time_total
        name = event.key.removeprefix("aten::")
        if name in _PRODUCTS or "conv" in name or "dot_product" in name:
            products += event.self_cpu_time_total
    return round(1 - products / whole, 4)
