"""Small corpora of noise, and what batches of them hold."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile
from lhotse import CutSet

from diminuendo.data.batching import Batch, TrainingBatches
from diminuendo.data.manifest import read_cuts

RATE = 16_000
VARIED = [0.2 + 0.05 * index for index in range(30)]


def corpus(folder: Path, seconds: Sequence[float], lazy: bool = False, missing: Sequence[int] = ()) -> CutSet:
    """Clips of noise named 0.wav, 1.wav, ...; those in `missing` are only in the manifest."""
    lines = []
    for index, length in enumerate(seconds):
        if index not in missing:
            noise = np.random.default_rng(index).uniform(-0.5, 0.5, round(length * RATE))
            soundfile.write(folder / f"{index}.wav", noise, RATE)
        lines.append(json.dumps({"audio_filepath": f"{index}.wav", "duration": length}) + "\n")
    (folder / "m.jsonl").write_text("".join(lines))
    cuts = read_cuts(folder / "m.jsonl", None)
    if not lazy:
        return cuts
    (folder / "shar").mkdir()
    cuts.to_shar(folder / "shar", fields={"recording": "wav"}, shard_size=7)
    return read_cuts(folder / "shar", None)


def ids(batches: Sequence[Batch]) -> list[str]:
    return [cut.id for batch in batches for cut in batch.cuts]


def names(count: int) -> list[str]:
    return sorted(f"{index}.wav" for index in range(count))


def take(batches: TrainingBatches, count: int) -> list[Batch]:
    try:
        return list(islice(batches, count))
    finally:
        batches.close()


def epoch_of(batches: TrainingBatches, epoch: int = 0) -> list[Batch]:
    taken = []
    for batch in batches:
        now = batches.state_dict()["epoch"]
        if now > epoch:
            batches.close()
            return taken
        taken += [batch] if now == epoch else []
    raise AssertionError("training batches never end")
