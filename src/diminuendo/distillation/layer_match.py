"""Which of a student's layers learns from which of its teacher's: the same one, the nearest, or one nearby at random.

The three matchings that a conformer recogniser was pruned with (Jiang et al., Interspeech 2023, arXiv 2305.19549); how
they are defined is ours, the paper's definitions could not be read.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Matching = Literal["fixed", "free", "random"]


def nearest_in_order(distances: Sequence[Sequence[float]]) -> list[int]:
    """For every row a column, so that columns increase from row to row and the sum of their distances is least.

    There are at least as many columns as rows.
    """
    columns = len(distances[0])
    # Of the rows so far, by how many of the columns may be used.
    best: list[tuple[float, list[int]]] = [(0.0, [])] * (columns + 1)
    for row, of_row in enumerate(distances):
        ahead: list[tuple[float, list[int]]] = [(float("inf"), [])] * (row + 1)
        for used in range(row + 1, columns + 1):
            total, chosen = best[used - 1]
            ahead.append(min(ahead[-1], (total + of_row[used - 1], [*chosen, used - 1]), key=lambda found: found[0]))
        best = ahead
    return best[-1][1]


@torch.no_grad()
def distances_between(
    student: Sequence[Float[Tensor, "frames dim"]], teacher: Sequence[Float[Tensor, "frames dim"]]
) -> list[list[float]]:
    """Of every teacher's layer to every student's: the mean L1 distance of frames."""
    found = [torch.stack([F.l1_loss(own.float(), its.float()) for own in student]) for its in teacher]
    distances: list[list[float]] = torch.stack(found).tolist()
    return distances


def near_at_random(layers: Sequence[int], depth: int) -> list[int]:
    """For every layer one that is drawn from its window, by torch's generator; windows lie side by side.

    A layer's window begins behind the one before; the last one ends with the depth.
    """
    begins = [0, *layers[:-1]]
    ends = [*layers[:-1], depth]
    return [int(torch.randint(begin + 1, end + 1, ())) for begin, end in zip(begins, ends, strict=True)]
