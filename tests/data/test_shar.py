import gzip
from pathlib import Path

import pytest
from lhotse import CutSet

from clips import corpus
from diminuendo.data.manifest import SharCuts, read_cuts, total_seconds
from diminuendo.errors import UserError


def write_shar(folder: Path, *splits: str | None) -> Path:
    """A clip for each split, two in a shard."""
    cuts = corpus(folder, [0.5] * len(splits))
    for cut, split in zip(cuts, splits, strict=True):
        cut.supervisions[0].custom = {"split": split} if split else {}
    (folder / "shar").mkdir()
    cuts.to_shar(folder / "shar", fields={"recording": "flac"}, shard_size=2)
    return folder / "shar"


def ids(cuts: CutSet) -> list[str]:
    return [cut.id for cut in cuts]


def test_a_shar_directory_stays_lazy(tmp_path: Path) -> None:
    cuts = read_cuts(write_shar(tmp_path, *[None] * 5), None)
    assert (cuts.is_lazy, type(cuts.data), total_seconds(cuts)) == (True, SharCuts, None)
    assert ids(cuts) == ids(cuts) == ["0.wav", "1.wav", "2.wav", "3.wav", "4.wav"]
    assert {cut.recording.sources[0].type for cut in cuts} == {"memory"}


def test_shards_are_shuffled_by_the_seed_alone(tmp_path: Path) -> None:
    data = read_cuts(write_shar(tmp_path, *[None] * 8), None).data
    orders = [tuple(cut.id for cut in data.in_order(seed)) for seed in (1, 1, 2, 3, 4)]
    assert orders[0] == orders[1]
    assert len(set(orders)) > 1
    assert {tuple(sorted(order)) for order in orders} == {tuple(f"{i}.wav" for i in range(8))}


def test_splits_of_a_shar_directory_are_selected(tmp_path: Path) -> None:
    folder = write_shar(tmp_path, "train", "dev", "train")
    assert ids(read_cuts(folder, None)) == ["0.wav", "2.wav"]
    assert ids(read_cuts(folder, "dev")) == ["1.wav"]
    with pytest.raises(UserError, match="has no split 'test'; its splits are dev, train"):
        read_cuts(folder, "test")


def test_a_shar_directory_that_lacks_a_shard_is_an_error(tmp_path: Path) -> None:
    folder = write_shar(tmp_path, *[None] * 3)
    (folder / "recording.000001.tar").unlink()
    with pytest.raises(UserError, match="incomplete: 2 of cuts, 1 of recording shards"):
        read_cuts(folder, None)


@pytest.mark.parametrize("line", ['{"split": "dev"', '{"type": "MonoCut", "split": "dev"}'])
def test_a_faulty_line_is_an_error_while_splits_are_looked_for(tmp_path: Path, line: str) -> None:
    folder = write_shar(tmp_path, "dev", "dev")
    with gzip.open(folder / "cuts.000000.jsonl.gz", "wt") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=f"Shar directory {folder}: a line is no lhotse cut"):
        read_cuts(folder, "train")


def test_a_faulty_line_is_an_error_when_it_is_come_to(tmp_path: Path) -> None:
    folder = write_shar(tmp_path, *[None] * 3)
    cuts = read_cuts(folder, None)
    with gzip.open(folder / "cuts.000001.jsonl.gz", "wt") as file:
        file.write("no JSON\n")
    with pytest.raises(UserError, match=f"Shar directory {folder}: a line is no lhotse cut"):
        list(cuts)
