"""Our attentions of WavLM and wav2vec2-BERT beside transformers': one layer, forward and with backward pass, in turn.

WavLM of Base size and wav2vec2-BERT of its own. Processor time, which other work on the machine moves less than the
clock. WavLM's biases are handed on by the first layer and learned, as in training.

python -m benchmarks.attention
"""

import time
from collections.abc import Callable, Iterator
from itertools import product
from statistics import median
from typing import Any

import torch
from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel, WavLMConfig, WavLMModel

from benchmarks.record import RESULTS, record
from diminuendo.families import family_of
from diminuendo.modules.ragged_wavlm import distance_biases

# Clips, and frames of each: 2, 10 and 30 s.
SHAPES = ((1, 499), (4, 499), (4, 99), (1, 1499))
RUNS = 7

Step = Callable[[], torch.Tensor]


def seconds(step: Step, *, backward: bool, bf16: bool) -> float:
    started = time.process_time()
    with torch.set_grad_enabled(backward), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = step()
        if backward:
            torch.autograd.backward(output.square().mean())
    return time.process_time() - started


def wavlm(clips: int, frames: int) -> dict[str, Step]:
    stock_model = WavLMModel(WavLMConfig(num_hidden_layers=2)).eval()
    stock, ours = (m.encoder.layers for m in (stock_model, family_of(stock_model).fast(stock_model)))
    hidden = torch.randn(clips, frames, 768)
    with torch.no_grad():
        table = stock[0].attention.compute_bias(frames, frames)
        stock_bias = table[None].repeat(clips, 1, 1, 1).flatten(0, 1).requires_grad_()
        first = ours[0].attention
        our_bias = distance_biases(first.rel_attn_embed, first.max_distance, frames).requires_grad_()
    return {
        "stock": lambda: stock[1].attention(hidden, position_bias=stock_bias)[0],
        "ours": lambda: ours[1].attention(hidden, position_bias=our_bias)[0],
    }


def wav2vec2_bert(clips: int, frames: int) -> dict[str, Step]:
    stock = Wav2Vec2BertModel(Wav2Vec2BertConfig(num_hidden_layers=1)).eval()
    hidden = torch.randn(clips, frames, stock.config.hidden_size)
    first, second = (model.encoder.layers[0].self_attn for model in (stock, family_of(stock).fast(stock)))
    return {"stock": lambda: first(hidden)[0], "ours": lambda: second(hidden)[0]}


def rows() -> Iterator[dict[str, Any]]:
    for make, (clips, frames), backward, bf16 in product((wavlm, wav2vec2_bert), SHAPES, (False, True), (False, True)):
        torch.manual_seed(0)
        steps = make(clips, frames)
        turns = [{n: seconds(s, backward=backward, bf16=bf16) for n, s in steps.items()} for _ in range(RUNS)]
        taken = {name: median(turn[name] for turn in turns) for name in steps}
        yield {
            "model": make.__name__,
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
    print("| model | clips x frames | pass | precision | stock, ms | ours, ms | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in found:
        passes = "forward and backward" if row["backward"] else "forward"
        times = row["milliseconds"]
        print(
            f"| {row['model']} | {row['clips']} x {row['frames']} | {passes} | {row['precision']} | {times['stock']} "
            f"| {times['ours']} | {row['ratio']} |"
        )
    record(RESULTS / "attention.json", {"runs": RUNS, "threads": 1, "rows": found})


if __name__ == "__main__":
    main()
