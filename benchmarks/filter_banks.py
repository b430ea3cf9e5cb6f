"""What filter banks in the place of the waveform save: a model of HuBERT Base's shape and quarters of it, both ways.

Random weights: time and size do not depend on them. 10 s of noise, batch 1, one thread, what the model hears included
(normalisation, or the bands); medians of passes in turn.

python -m benchmarks.filter_banks
"""

from typing import Any

import torch
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from benchmarks.heard import hearing, median_ms
from benchmarks.record import RESULTS, record
from diminuendo.families.filter_bank_input import with_filter_banks
from diminuendo.families.filter_banks import filter_bank_extractor
from diminuendo.profiling.count import count_macs_per_second, count_parameters
from diminuendo.students.shape import NAMED
from diminuendo.students.student import make_student

KEEP = 0.25
SECONDS, RUNS = 10, 9


def rows() -> list[dict[str, Any]]:
    torch.manual_seed(0)
    teacher = HubertModel(HubertConfig()).eval()
    params = KEEP * count_parameters(teacher)
    models = {"whole": teacher}
    models |= {name: make_student(teacher, NAMED[name], params).model for name in ("deep-thin", "shallow-wide")}
    found: dict[str, dict[str, Any]] = {}
    passes = {}
    for name, model in models.items():
        both = (
            (Wav2Vec2FeatureExtractor(do_normalize=True), model),
            (
                filter_bank_extractor(),
                with_filter_banks(model),
            ),
        )
        for heard, (extractor, one) in zip(("waveform", "filter banks"), both, strict=True):
            row = {"model": name, "input": heard, "params": count_parameters(one)}
            found[f"{name}, {heard}"] = row | {"macs_per_second": round(count_macs_per_second(one))}
            passes[f"{name}, {heard}"] = hearing(one, extractor, SECONDS)
    times = median_ms(passes, RUNS, threads=1)
    return [row | {"milliseconds": times[name]} for name, row in found.items()]


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
