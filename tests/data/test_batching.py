import io
import threading
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clips import RATE, VARIED, corpus, epoch_of, ids, names, take
from diminuendo.data import batching
from diminuendo.data.audio import Skipped, load_waveform
from diminuendo.data.batching import Batch, TrainingBatches, evaluation_batches
from diminuendo.data.sampling import BatchSettings
from diminuendo.errors import UserError

# What lhotse has to say about small corpora is an error too; it may leave files for the collector to close.
pytestmark = [pytest.mark.filterwarnings(f"error::{kind}Warning") for kind in ("User", "Runtime", "Deprecation")]


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == batching.THREAD]


def contents(batches: Sequence[Batch]) -> list[tuple[Any, ...]]:
    """All of the batches, for comparison bit for bit."""
    return [
        (batch.waveforms.numpy().tobytes(), tuple(batch.waveforms.shape), batch.lengths.tolist(), ids([batch]))
        for batch in batches
    ]


def test_padding_is_zero_and_behind_the_clip(tmp_path: Path) -> None:
    (batch,) = take(TrainingBatches(corpus(tmp_path, [0.5, 0.25, 0.75]), BatchSettings(9.0)), 1)
    assert (batch.waveforms.dtype, batch.waveforms.shape) == (torch.float32, (3, 12_000))
    assert batch.seconds == 1.5
    for waveform, length, cut in zip(batch.waveforms, batch.lengths.tolist(), batch.cuts, strict=True):
        np.testing.assert_array_equal(waveform[:length], load_waveform(cut))
        assert waveform[length:].count_nonzero() == 0


def test_cropping_to_the_shortest_cuts_every_clip_at_a_random_place(tmp_path: Path) -> None:
    cuts = corpus(tmp_path, [0.5, 0.25, 0.75])
    starts = set()
    for batch in take(TrainingBatches(cuts, BatchSettings(9.0, crop_to_shortest=True)), 5):
        assert batch.lengths.tolist() == [4000] * 3
        for waveform, cut in zip(batch.waveforms.numpy(), batch.cuts, strict=True):
            whole = load_waveform(cut)
            (start,) = [
                s for s in np.flatnonzero(whole == waveform[0]) if np.array_equal(whole[s : s + 4000], waveform)
            ]
            starts.add((cut.id, int(start)))
    assert len(starts) == 11  # five places in each of the longer clips, one in the shortest


def test_every_batch_of_an_epoch_is_cropped_at_places_of_its_own(tmp_path: Path) -> None:
    starts = set()
    for batch in take(TrainingBatches(corpus(tmp_path, [2.0] * 4), BatchSettings(1.0)), 4):
        (start,) = np.flatnonzero(load_waveform(batch.cuts[0]) == batch.waveforms.numpy()[0, 0])[:1]
        starts.add(int(start))
    assert len(starts) == 4


def test_a_process_may_go_on_with_the_state_of_another(tmp_path: Path) -> None:
    """As where only the first wrote a checkpoint; but for unusable batches they are as far."""
    cuts = corpus(tmp_path, [0.5] * 8)
    first, second = (TrainingBatches(cuts, BatchSettings(1.0, rank=rank, world_size=2)) for rank in range(2))
    take(first, 1)
    second.load_state_dict(first.state_dict())
    whole = take(TrainingBatches(cuts, BatchSettings(1.0, rank=1, world_size=2)), 2)
    assert ids(take(second, 1)) == ids(whole[1:])


@pytest.mark.parametrize(("limit", "longest", "expected"), [(1.0, 15.0, 1.0), (8.0, 0.75, 0.75)])
def test_a_clip_beyond_the_limits_is_cropped_not_dropped(
    tmp_path: Path, limit: float, longest: float, expected: float
) -> None:
    batches = epoch_of(TrainingBatches(corpus(tmp_path, [2.0, 0.5]), BatchSettings(limit, max_seconds=longest)))
    lengths = {cut.id: length for b in batches for cut, length in zip(b.cuts, b.lengths.tolist(), strict=True)}
    assert lengths == {"0.wav": expected * RATE, "1.wav": 0.5 * RATE}


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("crop_to_shortest", [False, True])
def test_resuming_gives_the_batches_of_an_uninterrupted_run(tmp_path: Path, lazy: bool, crop_to_shortest: bool) -> None:
    cuts = corpus(tmp_path, VARIED[:12], lazy)
    settings = BatchSettings(3.0, max_seconds=0.6, crop_to_shortest=crop_to_shortest)
    reference = TrainingBatches(cuts, settings)
    states, batches = [reference.state_dict()], []
    while states[-1]["epoch"] < 3:
        batches.append(next(reference))
        file = io.BytesIO()
        torch.save(reference.state_dict(), file)
        states.append(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    reference.close()
    assert [state["epoch"] for state in states].count(1) > 1
    for done, state in enumerate(states[:-2]):
        resumed = TrainingBatches(cuts, settings)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert contents(take(resumed, 2)) == contents(batches[done : done + 2])


def test_slow_clips_stay_whole_in_batches_that_are_as_much_longer(tmp_path: Path) -> None:
    """Their texts are of the whole."""
    cuts = corpus(tmp_path, [1.0, 1.0, 0.9, 0.8])
    settings = BatchSettings(2.0, max_seconds=1.0, speeds=(0.5, 1.25))
    found = set()
    for batch in take(TrainingBatches(cuts, settings), 12):
        assert batch.waveforms.numel() <= 2.0 / 0.5 * RATE
        for waveform, length, cut in zip(batch.waveforms, batch.lengths.tolist(), batch.cuts, strict=True):
            speed = 0.5 if length > RATE else 1.25
            np.testing.assert_array_equal(waveform[:length], load_waveform(cut, speed=speed))
            found.add((cut.id, speed))
    assert found == {(name, speed) for name in names(4) for speed in (0.5, 1.25)}
    assert max(batch.waveforms.numel() for batch in take(TrainingBatches(cuts, settings), 12)) == 2.0 / 0.5 * RATE


def speeds_of(batches: Sequence[Batch]) -> list[float]:
    return [
        cut.duration * RATE / length
        for batch in batches
        for cut, length in zip(batch.cuts, batch.lengths.tolist(), strict=True)
    ]


def test_speeds_depend_on_seed_epoch_and_batch_and_are_the_same_when_resumed(tmp_path: Path) -> None:
    cuts = corpus(tmp_path, [0.5] * 8)
    settings = BatchSettings(2.0, speeds=(0.5, 1.0, 2.0))
    reference = TrainingBatches(cuts, settings)
    whole = take(reference, 6)
    assert set(speeds_of(whole)) == {0.5, 1.0, 2.0}
    assert len({tuple(speeds_of([batch])) for batch in whole}) == 6  # of every batch and epoch their own
    other = TrainingBatches(cuts, BatchSettings(2.0, speeds=(0.5, 1.0, 2.0), seed=1))
    assert speeds_of(take(other, 2)) != speeds_of(whole[:2])
    for done in (1, 3):
        batches = TrainingBatches(cuts, settings)
        take(batches, done)
        resumed = TrainingBatches(cuts, settings)
        resumed.load_state_dict(batches.state_dict())
        assert contents(take(resumed, 2)) == contents(whole[done : done + 2])


def test_a_state_from_before_there_were_speeds_is_one_at_their_own(tmp_path: Path) -> None:
    cuts = corpus(tmp_path, VARIED[:5])
    state = TrainingBatches(cuts, BatchSettings(3.0)).state_dict()
    del state["settings"]["speeds"]
    TrainingBatches(cuts, BatchSettings(3.0)).load_state_dict(state)
    with pytest.raises(UserError, match=r"speeds was \(1.0,\), is \(0.9,\)"):
        TrainingBatches(cuts, BatchSettings(3.0, speeds=(0.9,))).load_state_dict(state)


def test_loading_a_state_overrides_what_was_read_ahead(tmp_path: Path) -> None:
    batches = TrainingBatches(corpus(tmp_path, VARIED), BatchSettings(3.0))
    start = batches.state_dict()
    first = list(islice(batches, 3))
    batches.load_state_dict(start)
    assert contents(take(batches, 3)) == contents(first)


@pytest.mark.parametrize(
    ("settings", "clips", "message"),
    [
        (BatchSettings(3.0, seed=1), 5, "cannot resume: seed was 0, is 1"),
        (BatchSettings(3.0, world_size=2), 5, "world_size was 1, is 2"),
        (BatchSettings(4.0), 5, "seconds_per_batch was 3.0, is 4.0"),
        (BatchSettings(3.0), 4, "clips was 5, is 4"),
    ],
)
def test_resuming_with_other_settings_is_an_error(
    tmp_path: Path, settings: BatchSettings, clips: int, message: str
) -> None:
    state = TrainingBatches(corpus(tmp_path, VARIED[:5]), BatchSettings(3.0)).state_dict()
    with pytest.raises(UserError, match=message):
        TrainingBatches(corpus(tmp_path, VARIED[:clips]), settings).load_state_dict(state)


def test_crops_differ_between_seeds_processes_and_epochs(tmp_path: Path) -> None:
    cuts = corpus(tmp_path, [2.0])
    crops = set()
    for seed, rank, epoch in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        settings = BatchSettings(1.0, seed=seed, rank=rank, world_size=2)
        (batch,) = epoch_of(TrainingBatches(cuts, settings), epoch)
        crops.add(batch.waveforms.numpy().tobytes())
    assert len(crops) == 4


def test_unusable_clips_are_dropped_counted_and_passed_over(tmp_path: Path) -> None:
    cuts = corpus(tmp_path, [0.5] * 9, missing=[2, 5])
    skipped = Skipped()
    batches = TrainingBatches(cuts, BatchSettings(0.5), skipped)  # one clip a batch
    usable = sorted(set(names(9)) - {"2.wav", "5.wav"})
    assert [sorted(ids(take(batches, 7))) for _ in range(3)] == [usable] * 3
    assert set(skipped.reasons.items()) == {("2.wav", "missing"), ("5.wav", "missing")}
    resumed = TrainingBatches(cuts, BatchSettings(0.5))
    resumed.load_state_dict(batches.state_dict())
    assert resumed.skipped.reasons == skipped.reasons


def test_a_batch_keeps_its_usable_clips(tmp_path: Path) -> None:
    (batch,) = take(TrainingBatches(corpus(tmp_path, [0.5] * 5, missing=[1]), BatchSettings(9.0)), 1)
    assert sorted(ids([batch])) == ["0.wav", "2.wav", "3.wav", "4.wav"]
    assert batch.waveforms.shape == (4, 8000)


@pytest.mark.parametrize("world_size", [1, 2])
def test_no_usable_clip_at_all_is_an_error(tmp_path: Path, world_size: int) -> None:
    cuts = corpus(tmp_path, [0.5] * 4 + [0.05], missing=range(4))
    for cut in cuts:
        cut.duration = cut.recording.duration = 0.5
    batches = TrainingBatches(cuts, BatchSettings(0.5, world_size=world_size))
    message = r"none of the 5 clips can be used: 4 missing \(first: .\.wav\), 1 too short \(first: 4.wav\); check the"
    for _ in range(2):
        with pytest.raises(UserError, match=message):
            next(batches)
    assert sorted(batches.skipped.reasons) == names(5)
    assert batches.state_dict()["epoch"] == (0 if world_size == 1 else 9)  # alone, one epoch is proof enough


def test_a_corpus_that_breaks_behind_a_resumed_batch_is_used_on(tmp_path: Path) -> None:
    cuts = corpus(tmp_path, [0.5] * 4)
    before = TrainingBatches(cuts, BatchSettings(0.5))
    used = ids(list(islice(before, 2)))
    before.close()
    for id_ in set(names(4)) - set(used):
        (tmp_path / id_).unlink()
    resumed = TrainingBatches(cuts, BatchSettings(0.5))
    resumed.load_state_dict(before.state_dict())
    assert sorted(ids(take(resumed, 2))) == sorted(used)


def test_an_error_while_reading_reaches_the_consumer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("decoder on fire")

    monkeypatch.setattr(batching, "load_waveform", fail)
    batches = TrainingBatches(corpus(tmp_path, [0.5]), BatchSettings(9.0))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="decoder on fire"):
            next(batches)


def test_two_batches_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    ahead = threading.Event()

    def counted(cut: Any, *others: Any) -> np.ndarray:
        read.append(cut.id)
        if len(read) == 3:
            ahead.set()
        return load_waveform(cut, *others)

    monkeypatch.setattr(batching, "load_waveform", counted)
    batches = TrainingBatches(corpus(tmp_path, [0.5] * 50), BatchSettings(0.5))
    next(batches)
    assert ahead.wait(timeout=30)
    batches.close()
    assert len(read) == 3


def test_closing_ends_the_thread_and_taking_goes_on_where_it_stopped(tmp_path: Path) -> None:
    cuts = corpus(tmp_path, VARIED)
    batches = TrainingBatches(cuts, BatchSettings(3.0))
    first = list(islice(batches, 2))
    assert [thread.daemon for thread in readers()] == [True]  # the interpreter may exit
    batches.close()
    batches.close()
    assert readers() == []
    assert contents([*first, *take(batches, 2)]) == contents(take(TrainingBatches(cuts, BatchSettings(3.0)), 4))


def test_forgotten_batches_do_not_keep_their_thread(tmp_path: Path) -> None:
    batches = TrainingBatches(corpus(tmp_path, VARIED), BatchSettings(3.0))
    next(batches)
    (thread,) = readers()
    del batches
    thread.join(timeout=30)
    assert not thread.is_alive()


@pytest.mark.parametrize("lazy", [False, True])
def test_evaluation_reads_every_clip_once_longest_first(tmp_path: Path, lazy: bool) -> None:
    cuts = corpus(tmp_path, [*VARIED, 5.0], lazy)
    batches = list(evaluation_batches(cuts, 4.0))
    assert sorted(ids(batches)) == names(31)
    lengths = [length for batch in batches for length in batch.lengths.tolist()]
    assert lengths == [round(length * RATE) for length in sorted([*VARIED, 5.0], reverse=True)]
    assert [len(batch.cuts) for batch in batches][:2] == [1, 2]
    assert max(batch.waveforms.numel() for batch in batches[1:]) <= 4.0 * RATE


def test_a_lazy_set_is_sorted_in_stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "WINDOW_LAZY", 2)
    cuts = corpus(tmp_path, [0.2, 0.4, 0.6, 0.8, 0.5], lazy=True)
    batches = list(evaluation_batches(cuts, 9.0))
    assert [ids([batch]) for batch in batches] == [["1.wav", "0.wav"], ["3.wav", "2.wav"], ["4.wav"]]


def test_evaluation_skips_and_counts_what_it_cannot_use(tmp_path: Path) -> None:
    skipped = Skipped()
    batches = list(evaluation_batches(corpus(tmp_path, [0.5] * 4, missing=[0]), 0.5, skipped=skipped))
    assert (sorted(ids(batches)), skipped.reasons) == (["1.wav", "2.wav", "3.wav"], {"0.wav": "missing"})


def test_evaluation_without_a_usable_clip_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of the 3 clips can be used: 3 missing \(first: 0.wav\)"):
        list(evaluation_batches(corpus(tmp_path, [0.5] * 3, missing=range(3)), 0.5))
