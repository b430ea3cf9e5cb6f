"""Batches of waveforms: cropped and read ahead for training, in one sorted pass for evaluation."""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from queue import SimpleQueue
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from lhotse import CutSet
from lhotse.cut import Cut
from torch import Tensor

from diminuendo.data.audio import BadAudio, Skipped, by_reason, crop, load_waveform
from diminuendo.data.sampling import WINDOW_LAZY, BatchSettings, sampled_batches
from diminuendo.errors import UserError

READ_AHEAD = 2  # batches
THREAD = "read-ahead"
# One process of several may draw only unusable clips in an epoch of a tiny corpus, but not ten times over.
FRUITLESS_EPOCHS = 10

_Bad = list[tuple[str, BadAudio]]


@dataclass(frozen=True, eq=False)
class Batch:
    """Clips of a batch, zero-padded at the end, in float32; `lengths` in samples; `cuts` in the same order."""

    waveforms: Float[Tensor, "batch samples"]
    lengths: Int[Tensor, "batch"]
    cuts: tuple[Cut, ...]
    sampling_rate: int

    @property
    def seconds(self) -> float:
        """Audio in the batch, without padding."""
        return int(self.lengths.sum()) / self.sampling_rate


class TrainingBatches:
    """An infinite iterator over training batches, read ahead by a thread, which `close` ends.

    A batch holds at most `seconds_per_batch` seconds, padding included; longer clips are cropped, at random, to
    `max_seconds`. Every epoch is shuffled anew; within one, the processes of a run get different clips. The state is
    that of the last batch taken: after loading it, the batches that follow are those of an uninterrupted run, bit for
    bit. With several processes each saves its own, as an unusable batch moves one of them ahead.

    Unusable clips are dropped and noted in `skipped`; an epoch without a single usable one raises UserError.
    """

    def __init__(self, cuts: CutSet, settings: BatchSettings, skipped: Skipped | None = None) -> None:
        self.cuts, self.settings = cuts, settings
        self.skipped = Skipped() if skipped is None else skipped
        self._epoch, self._batch = 0, 0
        self._reader: _Reader | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._reader is None:
            self._reader = _Reader(_stream(self.cuts, self.settings, self._epoch, self._batch))
        while True:
            item = self._reader.take()
            self._epoch, self._batch = item.epoch, item.following
            for clip, bad in item.bad:
                self.skipped.add(clip, bad)
            if item.batch is not None:
                return item.batch

    def state_dict(self) -> dict[str, Any]:
        """Plain data, from which `load_state_dict` goes on behind the last batch that was taken."""
        return {
            "epoch": self._epoch,
            "batch": self._batch,
            "settings": self._binding(),
            "skipped": self.skipped.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the state was taken.

        Raises:
            UserError: a setting that decides which batches follow is not what it was.
        """
        for name, value in self._binding().items():
            was = state["settings"].get(name, getattr(BatchSettings, name, None))  # before there was such a setting
            if was != value:
                raise UserError(f"cannot resume: {name} was {was}, is {value}; give what it was")
        self.close()
        self._epoch, self._batch = state["epoch"], state["batch"]
        self.skipped.load_state_dict(state["skipped"])

    def close(self) -> None:
        """End the reading thread. What it had read ahead is read again if batches are taken after all."""
        if self._reader is not None:
            self._reader.stop()
            self._reader.join()
            self._reader = None

    def __del__(self) -> None:
        if self._reader is not None:
            self._reader.stop()  # without waiting: at interpreter exit a daemon thread may be frozen

    def _binding(self) -> dict[str, Any]:
        # All that the batches depend on but the rank: processes may share the state where no batch was unusable.
        binding = asdict(self.settings) | {"clips": None if self.cuts.is_lazy else len(self.cuts)}
        del binding["rank"]
        return binding


def look_at_one(cuts: CutSet, settings: BatchSettings) -> Batch:
    """The first training batch. Clips without use are not named: they will be met again. UserError if all are."""
    batches = TrainingBatches(cuts, settings, Skipped(named=False))
    try:
        return next(batches)
    finally:
        batches.close()


def evaluation_batches(
    cuts: CutSet,
    seconds_per_batch: float,
    sampling_rate: int = 16_000,
    min_seconds: float = 0.1,
    skipped: Skipped | None = None,
) -> Iterator[Batch]:
    """Every usable clip once, uncropped, sorted by length (a lazy set: stretch by stretch), longest first.

    A batch holds at most `seconds_per_batch` seconds, padding included, or a single longer clip.

    Raises:
        UserError: no clip can be used.
    """
    skipped = Skipped() if skipped is None else skipped
    bad: _Bad = []
    used = False
    for clips in sorted_batches(cuts, seconds_per_batch):
        waveforms, kept, unusable = _load(clips, sampling_rate, min_seconds)
        bad += unusable
        for clip, why in unusable:
            skipped.add(clip, why)
        if kept:
            used = True
            yield _padded(waveforms, kept, sampling_rate)
    if not used:
        raise _none_usable(bad)


@dataclass(frozen=True, eq=False)
class _Item:
    """What the thread hands over: a batch (None if no clip of it is usable) and the state behind it."""

    batch: Batch | None
    bad: _Bad
    epoch: int
    following: int


class _Reader:
    """A daemon thread that draws from an iterator, at most READ_AHEAD items before they are taken."""

    def __init__(self, items: Iterator[_Item]) -> None:
        self._read: SimpleQueue[_Item | BaseException] = SimpleQueue()
        self._slots = threading.Semaphore(READ_AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=_read_ahead, args=(items, self._read, self._slots, self._stop), name=THREAD, daemon=True
        )
        self._thread.start()

    def take(self) -> _Item:
        item = self._read.get()
        if isinstance(item, BaseException):
            self._read.put(item)  # the thread is gone: whoever asks again gets the same answer
            raise item
        self._slots.release()
        return item

    def stop(self) -> None:
        self._stop.set()
        self._slots.release()

    def join(self) -> None:
        self._thread.join()


def _read_ahead(
    items: Iterator[_Item],
    read: "SimpleQueue[_Item | BaseException]",
    slots: threading.Semaphore,
    stop: threading.Event,
) -> None:
    try:
        while slots.acquire() and not stop.is_set():
            read.put(next(items))
    except BaseException as error:  # it belongs to the consumer
        read.put(error)


def _stream(cuts: CutSet, settings: BatchSettings, epoch: int, batch: int) -> Iterator[_Item]:
    """All batches from the given one on. Those before it are sampled again, not read."""
    bad: _Bad = []
    fruitless = 0
    while True:
        used = batch > 0  # what came before a resumed batch counts as usable
        for index, clips in enumerate(islice(sampled_batches(cuts, settings, epoch), batch, None), start=batch):
            item = _training_item(tuple(clips), settings, epoch, index)
            used = used or item.batch is not None
            bad = [] if used else bad + item.bad
            yield item
        fruitless = 0 if used else fruitless + 1
        if fruitless >= (1 if settings.world_size == 1 else FRUITLESS_EPOCHS):
            raise _none_usable(bad)
        epoch, batch = epoch + 1, 0


def _training_item(clips: tuple[Cut, ...], settings: BatchSettings, epoch: int, index: int) -> _Item:
    rate = settings.sampling_rate
    generator = np.random.default_rng((settings.seed, settings.rank, epoch, index))
    waveforms, kept, bad = _load(clips, rate, settings.min_seconds, settings.longest, generator, settings.speeds)
    if not kept:
        return _Item(None, bad, epoch, index + 1)
    # Batches keep to the limit unless durations in the manifest are wrong.
    waveforms = waveforms[: max(1, int(settings.seconds_per_batch / settings.min_seconds))]
    longest = int(settings.seconds_per_batch / min(settings.speeds) * rate) // len(waveforms)
    if settings.crop_to_shortest:
        longest = min(longest, *map(len, waveforms))
    waveforms = [crop(samples, longest, generator) for samples in waveforms]
    return _Item(_padded(waveforms, kept[: len(waveforms)], rate), bad, epoch, index + 1)


def _load(
    clips: Iterable[Cut],
    sampling_rate: int,
    min_seconds: float,
    max_seconds: float | None = None,
    generator: np.random.Generator | None = None,
    speeds: Sequence[float] = (1.0,),
) -> tuple[list[np.ndarray], list[Cut], _Bad]:
    """The waveforms that could be read, their cuts, and the others with the reason."""
    waveforms, kept, bad = [], [], []
    for cut in clips:
        speed = speeds[0] if generator is None or len(speeds) == 1 else float(generator.choice(speeds))
        try:
            waveforms.append(load_waveform(cut, sampling_rate, min_seconds, max_seconds, generator, speed))
            kept.append(cut)
        except BadAudio as error:
            bad.append((cut.id, error))
    return waveforms, kept, bad


def _padded(waveforms: Sequence[np.ndarray], cuts: Sequence[Cut], sampling_rate: int) -> Batch:
    lengths = torch.tensor([len(samples) for samples in waveforms])
    padded = torch.zeros(len(waveforms), int(lengths.max()))
    for row, samples in zip(padded, waveforms, strict=True):
        row[: len(samples)] = torch.from_numpy(samples)
    return Batch(padded, lengths, tuple(cuts), sampling_rate)


class NoneUsable(UserError):  # noqa: N818 - of no clip: the name of what is wrong
    """Of all clips."""


def _none_usable(bad: _Bad) -> NoneUsable:
    reasons = {clip: error.reason for clip, error in bad}
    why = by_reason(reasons.items())
    return NoneUsable(f"none of the {len(reasons)} clips can be used: {why}; check the paths and the audio in DATA")


def sorted_batches(cuts: CutSet, seconds_per_batch: float) -> Iterator[list[Cut]]:
    """The clips of `evaluation_batches`, before any is read."""
    source = iter(cuts)
    while stretch := list(islice(source, WINDOW_LAZY if cuts.is_lazy else None)):
        batch: list[Cut] = []
        for cut in sorted(stretch, key=lambda cut: -cut.duration):
            if batch and (len(batch) + 1) * batch[0].duration > seconds_per_batch:
                yield batch
                batch = []
            batch.append(cut)
        yield batch
