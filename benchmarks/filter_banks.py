"""What filter banks in the place of the waveform save: a model of HuBERT Base's shape and quarters of it, both ways.

Random weights: time and size do not depend on them. 10 s of noise, batch 1, one thread, what the model hears included
(normalisation, or the bands); medians of passes in turn.

python -m benchmarks.filter_banks
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from benchmarks.record import RESULTS, record
from diminuendo.families import model_inputs
from diminuendo.families.filter_bank_input import with_filter_banks
from diminuendo.families.filter_banks import filter_bank_extractor
from diminuendo.families.inputs import SAMPLING_RATE
from diminuendo.profiling.count import count_macs_per_second, count_parameters
from diminuendo.students.shape import NAMED
from diminuendo.students.student import make_student

KEEP = 0.25
SECONDS, RUNS = 10, 9


def milliseconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - started)


def rows() -> list[dict[str, Any]]:
    torch.manual_seed(0)
    teacher = HubertModel(HubertConfig()).eval()
    params = KEEP * count_parameters(teacher)
    models = {"whole": teacher}
    models |= {name: make_student(teacher, NAMED[name], params).model for name in ("deep-thin", "shallow-wide")}
    clip, length = 0.1 * torch.randn(1, SECONDS * SAMPLING_RATE), torch.tensor([SECONDS * SAMPLING_RATE])
    found, passes = [], []
    for name, model in models.items():
        both = (Wav2Vec2FeatureExtractor(do_normalize=True), model), (filter_bank_extractor(), with_filter_banks(model))
        for heard, (extractor, one) in zip(("waveform", "filter banks"), both, strict=True):
            macs = round(count_macs_per_second(one))
            found.append({"model": name, "input": heard, "params": count_parameters(one), "macs_per_second": macs})
            passes.append(lambda one=one, extractor=extractor: one(**model_inputs(extractor, clip, length)))
    with torch.inference_mode():
        turns = [[milliseconds(run) for run in passes] for _ in range(RUNS + 1)][1:]  # the first warms up
    return [row | {"milliseconds": round(median(turn[i] for turn in turns), 1)} for i, row in enumerate(found)]


def main() -> None:
    torch.set_num_threads(1)
    found = rows()
    print("| model | input | parameters | M MACs/s | ms | fewer parameters | less time |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for waveform, banks in zip(found[::2], found[1::2], strict=True):
        for row in (waveform, banks):
            saved = [f"{1 - row[key] / waveform[key]:.1%}" for key in ("params", "milliseconds")]
            print(
                f"| {row['model']} | {row['input']} | {row['params']:,} | {row['macs_per_second'] / 1e6:,.0f} "
                f"| {row['milliseconds']} | {' | '.join(saved)} |"
            )
    record(RESULTS / "filter_banks.json", {"runs": RUNS, "threads": 1, "seconds": SECONDS, "rows": found})


if __name__ == "__main__":
    main()
