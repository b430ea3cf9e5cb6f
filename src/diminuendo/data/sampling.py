"""Which clips make a training batch: shuffled, together with others of about their length, and dealt to processes."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from lhotse import CutSet
from lhotse.cut import Cut

from diminuendo.data.manifest import SharCuts
from diminuendo.errors import UserError

SPREAD = 1.2  # of the lengths in a batch, about
WINDOW_LAZY = 1_000  # clips held of a lazy set, for each process; those of a Shar directory bring their bytes


@dataclass(frozen=True)
class BatchSettings:
    """How training batches are made; lengths in seconds.

    `crop_to_shortest` cuts every clip to the shortest of its batch, at a random place, instead of padding. `speeds`:
    every clip is played at one of them, drawn anew each time; slower ones make batches that much longer.
    """

    seconds_per_batch: float
    max_seconds: float = 15.0
    min_seconds: float = 0.1
    crop_to_shortest: bool = False
    speeds: tuple[float, ...] = (1.0,)
    sampling_rate: int = 16_000
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not self.longest >= self.min_seconds or not math.isfinite(self.seconds_per_batch + self.max_seconds):
            raise UserError(
                f"seconds per batch ({self.seconds_per_batch:g}) and the longest clip ({self.max_seconds:g} s) "
                f"must be finite and must not be below the shortest usable clip ({self.min_seconds:g} s)"
            )

    @property
    def longest(self) -> float:
        """Seconds to which a clip is cropped."""
        return min(self.max_seconds, self.seconds_per_batch)


def sampled_batches(cuts: CutSet, settings: BatchSettings, epoch: int) -> Iterator[list[Cut]]:
    """The batches of one epoch for this process. Processes together have every clip, and as many batches each.

    A lazy set is read in windows, each shuffled by itself. Where a window's last clips are fewer than the processes,
    some of these have the same one. Raises UserError if there are no clips.
    """
    order = np.random.SeedSequence((settings.seed, epoch))
    generator = np.random.default_rng(order)
    source: Iterable[Cut] = cuts
    if isinstance(cuts.data, SharCuts):
        source = cuts.data.in_order(int(order.generate_state(1)[0]))
    clips, size = iter(source), WINDOW_LAZY * settings.world_size if cuts.is_lazy else None
    empty = True
    while window := list(islice(clips, size)):
        empty = False
        rounds = list(_rounds(window, settings, generator))
        for i in generator.permutation(len(rounds)):
            yield rounds[i][settings.rank :: settings.world_size] or [rounds[i][settings.rank % len(rounds[i])]]
    if empty:
        raise UserError("there are no clips to make batches of")


def _rounds(clips: list[Cut], settings: BatchSettings, generator: np.random.Generator) -> Iterator[list[Cut]]:
    """A batch for every process at a time, of neighbours in an order by length in which lengths are blurred by SPREAD.

    Where there is a gap between lengths a batch ends early, but no batch is left less than a quarter full for that.
    """
    lengths = np.minimum([clip.duration for clip in clips], settings.longest)
    blurred = lengths * generator.uniform(1, SPREAD, len(clips))
    start, longest = 0, 0.0
    order = np.argsort(blurred)
    for at, i in enumerate(order):
        before, longest = longest, max(longest, lengths[i])
        each = -(-(at + 1 - start) // settings.world_size)  # clips in the largest batch with this one
        full = each * longest > settings.seconds_per_batch
        gap = blurred[i] > SPREAD * blurred[order[start]]
        if at > start and (full or (gap and (each - 1) * before >= settings.seconds_per_batch / 4)):
            yield [clips[j] for j in order[start:at]]
            start, longest = at, lengths[i]
    yield [clips[j] for j in order[start:]]
