"""Our WavLM attention beside transformers': one layer of Base size, forward and with its backward pass, in turn.

Processor time, which other work on the machine moves less than the clock. The biases are handed on by the first layer
and learned, as in training.

python -m benchmarks.wavlm_attention
"""

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from transformers import WavLMConfig, WavLMModel

from benchmarks.record import RESULTS, record
from diminuendo.families import family_of
from diminuendo.modules.ragged_wavlm import distance_biases

# Clips, and frames of each: 2, 10 and 30 s.
SHAPES = ((1, 499), (4, 499), (4, 99), (1, 1499))
RUNS = 7


def seconds(step: Callable[[], torch.Tensor], *, backward: bool, bf16: bool) -> float:
    started = time.process_time()
    with torch.set_grad_enabled(backward), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = step()
        if backward:
            torch.autograd.backward(output.square().mean())
    return time.process_time() - started


def rows() -> Iterator[dict[str, Any]]:
    torch.manual_seed(0)
    stock_model = WavLMModel(WavLMConfig(num_hidden_layers=2)).eval()
    stock, ours = (m.encoder.layers for m in (stock_model, family_of(stock_model).fast(stock_model)))
    for clips, frames in SHAPES:
        hidden = torch.randn(clips, frames, 768)
        with torch.no_grad():
            table = stock[0].attention.compute_bias(frames, frames)
            stock_bias = table[None].repeat(clips, 1, 1, 1).flatten(0, 1).requires_grad_()
            attention = ours[0].attention
            our_bias = distance_biases(attention.rel_attn_embed, attention.max_distance, frames).requires_grad_()
        steps = {
            "stock": lambda x=hidden, bias=stock_bias: stock[1].attention(x, position_bias=bias)[0],
            "ours": lambda x=hidden, bias=our_bias: ours[1].attention(x, position_bias=bias)[0],
        }
        for backward in (False, True):
            for bf16 in (False, True):
                turns = [{n: seconds(s, backward=backward, bf16=bf16) for n, s in steps.items()} for _ in range(RUNS)]
                taken = {name: median(turn[name] for turn in turns) for name in steps}
                yield {
                    "clips": clips,
                    "frames": frames,
                    "backward": backward,
                    "precision": "bf16" if bf16 else "fp32",
                    "milliseconds": {name: round(1e3 * value, 1) for name, value in taken.items()},
                    "ratio": round(taken["ours"] / taken["stock"], 2),
                }


def main() -> None:
    torch.set_num_threads(1)
    found = list(rows())
    print("| clips x frames | pass | precision | stock, ms | ours, ms | ratio |\n| --- | --- | --- | --- | --- | --- |")
    for row in found:
        passes = "forward and backward" if row["backward"] else "forward"
        times = row["milliseconds"]
        print(
            f"| {row['clips']} x {row['frames']} | {passes} | {row['precision']} | {times['stock']} | {times['ours']} "
            f"| {row['ratio']} |"
        )
    record(RESULTS / "wavlm_attention.json", {"runs": RUNS, "threads": 1, "rows": found})


if __name__ == "__main__":
    main()
