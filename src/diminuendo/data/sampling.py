"""Which clips make a training batch: shuffled, dealt to processes, and together with others of about their length."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset.sampling.dynamic_bucketing import DynamicBucketingSampler, FixedBucketBatchSizeConstraint

from diminuendo.data.manifest import SharCuts
from diminuendo.errors import UserError

SPREAD = 1.2
BATCHES_PER_BUCKET = 4  # fewer, and the bucket's last, partial batch weighs too much
BUFFERED = 10_000  # clips among which the sampler chooses
BUFFERED_LAZY = 1_000  # the clips of a Shar directory bring their bytes


@dataclass(frozen=True)
class BatchSettings:
    """How training batches are made; lengths in seconds.

    `crop_to_shortest` cuts every clip to the shortest of its batch, at a random place, instead of padding.
    """

    seconds_per_batch: float
    max_seconds: float = 15.0
    min_seconds: float = 0.1
    crop_to_shortest: bool = False
    sampling_rate: int = 16_000
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.longest < self.min_seconds:
            raise UserError(
                f"seconds per batch ({self.seconds_per_batch:g}) and the longest clip ({self.max_seconds:g} s) "
                f"must not be below the shortest usable clip ({self.min_seconds:g} s)"
            )

    @property
    def longest(self) -> float:
        """Seconds to which a clip is cropped."""
        return min(self.max_seconds, self.seconds_per_batch)


class _BatchSizes(FixedBucketBatchSizeConstraint):  # type: ignore[misc]  # lhotse is untyped from where we stand
    """So many clips a bucket, clips being as long as they are after cropping."""

    def measure_length(self, example: Cut) -> float:
        return min(float(example.duration), float(self.max_seq_len_buckets[-1]))


def bucket_edges(cuts: CutSet, settings: BatchSettings) -> list[float]:
    """The longest clip of each bucket, in seconds, and one for longer clips unseen.

    A bucket ends before its longest clip would be SPREAD times its shortest, so that little is padded or cut away, but
    it has BATCHES_PER_BUCKET batches at least.
    """
    sample = islice(cuts, BUFFERED_LAZY) if cuts.is_lazy else cuts
    lengths = sorted(min(cut.duration, settings.longest) for cut in sample)
    if not lengths:
        raise UserError("there are no clips to make batches of")
    enough = BATCHES_PER_BUCKET * settings.seconds_per_batch
    edges, shortest, seconds = [], lengths[0], 0.0
    for previous, length in pairwise(lengths):
        seconds += previous
        if length > SPREAD * shortest and seconds >= enough:
            edges.append(previous)
            shortest, seconds = length, 0.0
    if edges and seconds + lengths[-1] < enough:
        edges.pop()
    return sorted({*edges, lengths[-1], settings.longest})


def sampled_batches(cuts: CutSet, settings: BatchSettings, edges: Sequence[float], epoch: int) -> Iterator[CutSet]:
    """The batches of one epoch for this process.

    The constraint, not `max_duration`, holds the limit: lhotse's own lets the last clip of a batch exceed it.
    """
    order = np.random.SeedSequence((settings.seed, epoch))
    seed = int(order.generate_state(1)[0])
    source: Iterable[Cut]
    if isinstance(cuts.data, SharCuts):
        source = cuts.data.in_order(seed)
    elif cuts.is_lazy:
        source = cuts
    else:
        clips = list(cuts)
        source = [clips[i] for i in np.random.default_rng(order).permutation(len(clips))]
    return iter(
        DynamicBucketingSampler(
            source,
            constraint=_BatchSizes(list(edges), [max(1, int(settings.seconds_per_batch / edge)) for edge in edges]),
            duration_bins=list(edges[:-1]),
            shuffle=cuts.is_lazy,  # lists are already in random order
            buffer_size=BUFFERED_LAZY if cuts.is_lazy else BUFFERED,
            sync_buckets=True,  # without, lhotse 1.33 loses clips at the end of an epoch
            seed=seed,
            rank=settings.rank,
            world_size=settings.world_size,
        )
    )
