"""A probe from cuts to a result."""

import logging
import random
import time
from collections import Counter

import torch
from jaxtyping import Bool, Float, Int
from lhotse import CutSet
from torch import Tensor

from diminuendo.data.batching import evaluation_batches
from diminuendo.errors import UserError
from diminuendo.evaluation.probes.features import Features
from diminuendo.evaluation.probes.keyword import keyword_clips
from diminuendo.evaluation.probes.probe import (
    HeadConfig,
    LabelledClip,
    ProbeResult,
    Split,
    bootstrap_interval,
    train_head,
)
from diminuendo.evaluation.probes.speaker import speaker_clips

log = logging.getLogger(__name__)

TASKS = {"keyword": keyword_clips, "speaker": speaker_clips}
# What the interval draws: keywords are about the next speaker, speakers about the next clip of the same.
RESAMPLED = {"keyword": "speaker", "speaker": "id"}


def labelled_clips(task: str, cuts: CutSet, seed: int = 0) -> list[LabelledClip]:
    """The clips that a probe uses. UserError for an unknown task, missing labels or splits, an id of several clips."""
    if task not in TASKS:
        raise UserError(f"probe task must be one of {', '.join(TASKS)}, got {task!r}")
    clips = TASKS[task](cuts, seed)
    if repeated := [id_ for id_, count in Counter(clip.id for clip in clips).items() if count > 1]:
        raise UserError(
            f"{len(repeated)} ids are of several clips, like {repeated[0]!r}: give each clip an id of its own"
        )
    return clips


def run_probe(
    task: str,
    features_of: Features,
    cuts: CutSet,
    seed: int = 0,
    *,
    seconds_per_batch: float = 60.0,
    max_clips: int | None = None,
    head_config: HeadConfig = HeadConfig(),  # noqa: B008
) -> ProbeResult:
    """Probe frozen features for "keyword" or "speaker" as SUPERB does: a weighted sum of layers, linear head.

    `cuts` are the clips of all splits; they are gone through twice, so that a lazy set never lies in memory. What does
    are the vectors, layers x dim floats a clip; `max_clips` bounds that and the time by a seeded sample.

    Raises:
        UserError: an unknown task, labels or splits missing, or no usable clip in one of train, dev and test.
    """
    started = time.perf_counter()
    clips = labelled_clips(task, cuts, seed)
    if max_clips is not None and max_clips < len(clips):
        log.info("%s probe: a sample of %d of %d clips", task, max_clips, len(clips))
        clips = [clips[i] for i in sorted(random.Random(seed).sample(range(len(clips)), max_clips))]
    clips, vectors = _vectors(task, clips, cuts, features_of, seconds_per_batch)
    clips, vectors, classes = _known_classes(task, clips, vectors)
    parts = {split: _part(clips, vectors, split, classes) for split in ("train", "dev", "test")}
    train_vectors, train_labels = parts["train"]
    mean, deviation = train_vectors.mean(0), train_vectors.std(0, correction=0).clamp(min=1e-5)
    train, dev, test = (((x - mean) / deviation, y) for x, y in parts.values())
    head = train_head(train, dev, len(classes), head_config, seed)
    correct = head.predict(test[0]) == test[1]
    tested = [clip for clip in clips if clip.split == "test"]
    low, high = bootstrap_interval(correct, [getattr(clip, RESAMPLED[task]) for clip in tested], seed)
    return ProbeResult(
        task=task,
        accuracy=correct.double().mean().item(),
        low=low,
        high=high,
        dev_accuracy=head.dev_accuracy,
        learning_rate=head.learning_rate,
        classes=len(classes),
        train_clips=len(train_labels),
        test_clips=len(correct),
        layer_weights=tuple(head.layer_logits.softmax(0).tolist()),
        outcomes=_by_speaker(tested, correct),
        seconds=time.perf_counter() - started,
    )


def _vectors(
    task: str, clips: list[LabelledClip], cuts: CutSet, features_of: Features, seconds_per_batch: float
) -> tuple[list[LabelledClip], Float[Tensor, "clips layers dim"]]:
    """The clips that have a vector, in their order, and their vectors."""
    wanted, of_cut = {clip.id for clip in clips}, dict[str, Tensor]()
    for batch in evaluation_batches(cuts.filter(lambda cut: cut.id in wanted), seconds_per_batch):
        found = zip(batch.cuts, features_of(batch), strict=True)
        of_cut |= {cut.id: vector for cut, vector in found if vector.isfinite().all()}
    lost = [clip.id for clip in clips if clip.id not in of_cut]
    if lost:
        log.warning(
            "%s probe: %d clips left out, unreadable, too short for one frame or with features not finite: %s",
            task,
            len(lost),
            ", ".join(lost[:10]) + (", ..." if len(lost) > 10 else ""),
        )
    kept = [clip for clip in clips if clip.id in of_cut]
    if not kept:
        raise UserError(f"the {task} probe could take features of none of {len(clips)} clips; the log names them")
    return kept, torch.stack([of_cut[clip.id] for clip in kept])


def _known_classes(
    task: str, clips: list[LabelledClip], vectors: Float[Tensor, "clips layers dim"]
) -> tuple[list[LabelledClip], Float[Tensor, "kept layers dim"], dict[str, int]]:
    """Classes are those of the train clips; dev and test clips of others are left out, for every model alike."""
    classes = {label: i for i, label in enumerate(sorted({c.label for c in clips if c.split == "train"}))}
    known = [i for i, clip in enumerate(clips) if clip.label in classes]
    if len(known) < len(clips):
        log.warning("%s probe: %d clips left out, their class is not in train", task, len(clips) - len(known))
    return [clips[i] for i in known], vectors[known], classes


def _part(
    clips: list[LabelledClip], vectors: Float[Tensor, "clips layers dim"], split: Split, classes: dict[str, int]
) -> tuple[Float[Tensor, "part layers dim"], Int[Tensor, "part"]]:
    chosen = [i for i, clip in enumerate(clips) if clip.split == split]
    least = 2 if split == "test" else 1  # one clip has no interval
    if len(chosen) < least:
        raise UserError(
            f"{len(chosen) or 'no'} usable clip in the {split} split, of {len(clips)} labelled clips with features; "
            "give more clips"
        )
    return vectors[chosen], torch.tensor([classes[clips[i].label] for i in chosen])


def _by_speaker(clips: list[LabelledClip], correct: Bool[Tensor, "clips"]) -> dict[str, str]:
    found: dict[str, str] = {}
    for clip, right in zip(clips, correct.tolist(), strict=True):
        found[clip.speaker] = found.get(clip.speaker, "") + str(int(right))
    return found
