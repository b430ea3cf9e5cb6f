"""Two methods on the same test clips: how much more one has, with an interval of that difference."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.encoder.cells import SAME_START
from diminuendo.evaluation.probes.probe import bootstrap_interval

Row = dict[str, Any]
SEED = 0


def difference(ours: list[Row], theirs: list[Row], task: str) -> tuple[float, float, float]:
    """The accuracy that the first have more, in points, with its 95 % interval; each side the mean of its models.

    Speakers differ much more than models do, so of two models' own intervals little can be read. As those, this one
    resamples speakers for keywords and clips for speakers. Seeds are not resampled: three are too few.
    """
    by_speaker = {
        speaker: _mean(ours, task, speaker) - _mean(theirs, task, speaker) for speaker in ours[0][task]["outcomes"]
    }
    scores = 100 * torch.cat(list(by_speaker.values()))
    groups = [speaker for speaker, values in by_speaker.items() for _ in values]
    if task == "speaker":
        groups = [str(i) for i in range(len(scores))]
    return float(scores.mean()), *bootstrap_interval(scores, groups, SEED)


def _mean(rows: list[Row], task: str, speaker: str) -> torch.Tensor:
    return torch.tensor([[float(c) for c in row[task]["outcomes"][speaker]] for row in rows]).mean(0)


def table(grouped: dict[tuple[Any, ...], list[Row]], label: Callable[[tuple[Any, ...]], str]) -> str:
    """Markdown: what the joint runs have more than each other method with everything else the same, and more than their
    own ablations; and a learned shape more than another from the same start; of the seeds that both have."""
    lines = ["| more | than | kept | seeds | keyword, points | speaker, points |", "|" + " --- |" * 6]
    for key in sorted(grouped, key=str):
        method, keep, ablation, *rest = key
        betters = [("joint", keep, "", *rest)] if method != "joint" or ablation else []
        betters += [(SAME_START[method], keep, ablation, *rest)] if method in SAME_START else []
        for better in betters:
            ours, theirs = _common_seeds(grouped.get(better, []), grouped[key])
            if theirs:
                cells = [_text(*difference(ours, theirs, task)) for task in ("keyword", "speaker")]
                lines.append(
                    "| " + " | ".join([label(better), label(key), f"{keep:.1%}", str(len(ours)), *cells]) + " |"
                )
    return "\n".join(lines)


def _common_seeds(ours: list[Row], theirs: list[Row]) -> tuple[list[Row], list[Row]]:
    seeds = {row["cell"]["seed"] for row in ours} & {row["cell"]["seed"] for row in theirs}
    common = [[row for row in rows if row["cell"]["seed"] in seeds] for rows in (ours, theirs)]
    return common[0], common[1]


def _text(mean: float, low: float, high: float) -> str:
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
