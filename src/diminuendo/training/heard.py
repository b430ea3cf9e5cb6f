"""Some audio of a run, to fit on what is not trained."""

from collections.abc import Iterator

from lhotse import CutSet

from diminuendo.data.audio import Skipped
from diminuendo.data.batching import Batch, TrainingBatches
from diminuendo.data.manifest import total_seconds
from diminuendo.training.config import TrainingConfig


def some_batches(
    cuts: CutSet, config: TrainingConfig, skipped: Skipped, seconds: float, *, offset: int
) -> Iterator[Batch]:
    """About so many seconds, the same in every process; once through less is enough. offset: apart from stages'."""
    batches = TrainingBatches(cuts, config.batch_settings(crop_to_shortest=False, offset=offset), skipped)
    wanted, seen = min(seconds, total_seconds(cuts) or seconds), 0.0
    try:
        while seen < wanted:
            batch = next(batches)
            yield batch
            seen += batch.seconds
    finally:
        batches.close()
