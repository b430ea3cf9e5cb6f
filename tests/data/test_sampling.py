"""Which clips make a batch: all of them, mixed, of about one length, shared out."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from lhotse import CutSet

from clips import RATE, VARIED, corpus, epoch_of, ids, names
from diminuendo.data import sampling
from diminuendo.data.batching import TrainingBatches
from diminuendo.data.sampling import BatchSettings, sampled_batches
from diminuendo.errors import UserError

# What lhotse has to say about small corpora is an error too; it may leave files for the collector to close.
pytestmark = [pytest.mark.filterwarnings(f"error::{kind}Warning") for kind in ("User", "Runtime", "Deprecation")]


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    "seconds", [VARIED, [0.5] * 20, [0.3, 0.6, 0.9], [0.5]], ids=["varied", "same", "three", "one"]
)
def test_every_epoch_has_every_clip_once_in_another_order(tmp_path: Path, seconds: Sequence[float], lazy: bool) -> None:
    cuts = corpus(tmp_path, seconds, lazy)
    epochs = [ids(epoch_of(TrainingBatches(cuts, BatchSettings(2.0)), epoch)) for epoch in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [names(len(seconds))] * 3
    if len(seconds) > 3:
        assert epochs[0] != epochs[1] != epochs[2]
        assert ids(epoch_of(TrainingBatches(cuts, BatchSettings(2.0, seed=1)))) != epochs[0]


@pytest.mark.parametrize("crop_to_shortest", [False, True])
@pytest.mark.parametrize("stated", [None, 0.2], ids=["true durations", "wrong durations"])
def test_no_batch_exceeds_its_seconds_padding_included(
    tmp_path: Path, crop_to_shortest: bool, stated: float | None
) -> None:
    cuts = corpus(tmp_path, VARIED)
    if stated:
        for cut in cuts:
            cut.duration = cut.recording.duration = stated
    settings = BatchSettings(4.0, crop_to_shortest=crop_to_shortest)
    batches = [b for epoch in range(3) for b in epoch_of(TrainingBatches(cuts, settings), epoch)]
    assert max(batch.waveforms.numel() for batch in batches) <= 4.0 * RATE


def test_durations_in_hours_leave_whole_frames_of_a_clip(tmp_path: Path) -> None:
    cuts = corpus(tmp_path, [0.1] * 36)
    for cut in cuts:
        cut.duration = cut.recording.duration = 0.1 / 3600
    batches = epoch_of(TrainingBatches(cuts, BatchSettings(0.5)))
    assert all(batch.lengths.min() >= 0.1 * RATE and batch.seconds <= 0.5 for batch in batches)


@pytest.mark.parametrize("short", [1, 8])
def test_long_clips_of_one_length_are_not_cut_to_shorter_ones(tmp_path: Path, short: int) -> None:
    """As where commands of a second and spoken digits meet, many or few."""
    cuts = corpus(tmp_path, [1.0] * 120 + [0.2, 0.25, 0.3, 0.35] * short)
    batches = epoch_of(TrainingBatches(cuts, BatchSettings(seconds_per_batch=4.0, crop_to_shortest=True)))
    assert sum(batch.seconds for batch in batches) > 0.94 * sum(cut.duration for cut in cuts)
    few = TrainingBatches(cuts, BatchSettings(seconds_per_batch=900.0, crop_to_shortest=True))
    assert len(epoch_of(few)) == 1  # too little audio to keep them apart


@pytest.mark.parametrize("lazy", [False, True])
def test_lengths_are_mixed_all_through_an_epoch(tmp_path: Path, lazy: bool) -> None:
    """A stage that ends within an epoch, and clusters from its start, would otherwise be of some lengths alone."""
    cuts = corpus(tmp_path, [1.0] * 200 + [0.25] * 400, lazy)
    shares = []
    for epoch in range(4):
        batches = epoch_of(TrainingBatches(cuts, BatchSettings(2.0)), epoch)
        half = len(batches) // 2
        shares += [sum(len(batch.cuts) == 8 for batch in part) / half for part in (batches[:half], batches[half:])]
    assert min(shares) > 0.2
    assert max(shares) < 0.5  # a third of the batches are of short clips


def test_clips_of_a_batch_have_similar_lengths(tmp_path: Path) -> None:
    batches = epoch_of(TrainingBatches(corpus(tmp_path, VARIED * 4), BatchSettings(6.0)))
    padded = sum(batch.waveforms.numel() for batch in batches) / RATE
    assert padded / sum(batch.seconds for batch in batches) < 1.2


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_out_the_clips_of_an_epoch(tmp_path: Path, world_size: int, lazy: bool) -> None:
    cuts = corpus(tmp_path, VARIED, lazy)
    shares = [
        epoch_of(TrainingBatches(cuts, BatchSettings(2.0, rank=rank, world_size=world_size)), epoch=1)
        for rank in range(world_size)
    ]
    dealt = [id_ for share in shares for id_ in ids(share)]
    assert sorted(set(dealt)) == names(len(VARIED))
    assert len(dealt) - len(VARIED) < world_size  # again only to give each process one of the last clips
    assert len({len(share) for share in shares}) == 1


def test_no_process_gets_more_than_fits(tmp_path: Path) -> None:
    cuts = corpus(tmp_path, [0.5] * 21)
    for rank in range(2):
        dealt = sampled_batches(cuts, BatchSettings(2.0, rank=rank, world_size=2), 0)
        assert max(len(clips) for clips in dealt) == 4


def test_clips_count_as_long_as_they_will_be_cropped_to(tmp_path: Path) -> None:
    settings = BatchSettings(2.0, max_seconds=0.5)
    assert [len(clips) for clips in sampled_batches(corpus(tmp_path, [2.0] * 8), settings, 0)] == [4, 4]


def test_shards_come_in_another_order_every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "WINDOW_LAZY", 7)  # a shard
    cuts = corpus(tmp_path, [0.5] * 28, lazy=True)
    first = [next(sampled_batches(cuts, BatchSettings(9.0), epoch)) for epoch in range(5)]
    assert len({frozenset(cut.id for cut in clips) for clips in first}) > 1


@pytest.mark.parametrize("settings", [{"seconds_per_batch": 0.0}, {"seconds_per_batch": 9.0, "max_seconds": 0.05}])
def test_limits_below_the_shortest_usable_clip_are_an_error(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match="must not be below the shortest usable clip"):
        BatchSettings(**settings)


def test_training_on_no_clips_is_an_error() -> None:
    with pytest.raises(UserError, match="there are no clips"):
        next(TrainingBatches(CutSet([]), BatchSettings(9.0)))
