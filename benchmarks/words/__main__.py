"""A recognition task that trains in minutes: connected words of real voices, with unseen speakers in dev and test.

    python -m benchmarks.words SPEECH OUT [--train 12000] [--singles 0.5] [--max-words 6] [--seed 0] [--json] [--quiet]

SPEECH has the folders that corpus.py names. OUT gets audio and a manifest.jsonl with splits; it must be new or empty,
or hold the same corpus, which is then only counted.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.words.corpus import words_of
from diminuendo.data.connected import Joining, connect
from diminuendo.errors import UserError
from diminuendo.training.progress import tracked

T = TypeVar("T")


def counts(manifest: Path) -> dict[str, dict[str, Any]]:
    """What there is of every split."""
    splits: dict[str, list[dict[str, Any]]] = {}
    for line in manifest.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        splits.setdefault(row["split"], []).append(row)
    return {
        split: {
            "utterances": len(rows),
            "hours": round(sum(row["duration"] for row in rows) / 3600, 3),
            "words": sum(row["num_words"] for row in rows),
            "vocabulary": len({word for row in rows for word in row["text"].split()}),
            "clips": len({clip for row in rows for clip in row["clips"]}),
            "speakers": len({row["speaker"] for row in rows}),
        }
        for split, rows in splits.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.words", description=__doc__.splitlines()[0])
    parser.add_argument("speech", type=Path, help="folders with a manifest.jsonl each; see corpus.py")
    parser.add_argument("out", type=Path, help="a directory that is new or empty, or holds the same corpus")
    parser.add_argument("--train", type=int, default=12_000, help="utterances for training (default: %(default)s)")
    parser.add_argument(
        "--singles", type=float, default=Joining.singles, help="fraction of them with one word (default: %(default)s)"
    )
    parser.add_argument("--max-words", type=int, default=Joining.max_words, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print counts as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")
    given = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")

    def track(items: Sequence[T], name: str, unit: str) -> Iterable[T]:
        return tracked(items, name, unit, given.quiet)

    try:
        joining = Joining(given.max_words, given.singles)
        clips = words_of(given.speech)
        manifest = connect(given.out, clips, train=given.train, joining=joining, seed=given.seed, track=track)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    found = counts(manifest)
    if given.json:
        print(json.dumps({"manifest": str(manifest), "splits": found}))
        return
    for split, numbers in found.items():
        print(f"{split}: " + ", ".join(f"{value:,} {name}" for name, value in numbers.items()))
    print(manifest)


if __name__ == "__main__":
    main()
