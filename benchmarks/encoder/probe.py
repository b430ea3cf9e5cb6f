"""What frozen features know of keywords and speakers, as one JSON-ready record."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.encoder.corpus import PROBE
from diminuendo.data.batching import Batch
from diminuendo.data.manifest import ALL, read_cuts, split_of
from diminuendo.evaluation.probes import Features, encoder_features, log_mel_features, mfcc_features, run_probe
from diminuendo.evaluation.probes.probe import speaker_of
from diminuendo.training.removing import Source

TASKS = ("keyword", "speaker")
SEED = 0
FLOORS: dict[str, Callable[[], Features]] = {"log-mel": log_mel_features, "mfcc": mfcc_features}


def probe(features: Features, audio: Path) -> dict[str, Any]:
    """Both probes of arabic_commands: unseen speakers for keywords, unseen takes for speakers.

    `never_heard` is the speaker accuracy over the speakers of no train split: of the others all takes are in the audio
    that encoders are trained on.
    """
    cuts = read_cuts(audio / PROBE, ALL)
    once = _remembering(features)
    found = {task: asdict(run_probe(task, once, cuts, SEED)) for task in TASKS}
    heard = {speaker_of(cut) for cut in cuts if split_of(cut) == "train"}
    outcomes = found["speaker"]["outcomes"]
    unheard = "".join(outcomes[speaker] for speaker in outcomes if speaker not in heard)
    return found | {"never_heard": unheard.count("1") / max(1, len(unheard)), "probe_seed": SEED}


def probe_model(source: Source, audio: Path) -> dict[str, Any]:
    return probe(encoder_features(source.model, source.extractor), audio)


def _remembering(features: Features) -> Features:
    """Both probes go through the same clips in the same batches."""
    seen: dict[tuple[str, ...], Tensor] = {}

    def remembered(batch: Batch) -> Tensor:
        ids = tuple(cut.id for cut in batch.cuts)
        if ids not in seen:
            seen[ids] = features(batch)
        return seen[ids]

    return remembered
