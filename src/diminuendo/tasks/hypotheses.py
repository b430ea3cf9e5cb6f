"""What a decoder finds in a clip, and what all beam searches share."""

import math
from dataclasses import dataclass

from diminuendo.errors import UserError


@dataclass(frozen=True)
class Hypothesis:
    """One labelling of a clip.

    `frames[i]` is the encoder frame at which `tokens[i]` was emitted; times are frames x the duration of a frame.
    """

    tokens: tuple[int, ...]
    """Without blanks."""
    frames: tuple[int, ...]
    score: float
    """A natural log-probability: greedy decoding gives that of its one path, beam search that of the labelling, the
    sum over the paths to it that the beam kept."""


def log_add(first: float, second: float) -> float:
    """log(exp(first) + exp(second)); both may be -inf."""
    high, low = max(first, second), min(first, second)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


def check_beam(beam: int, n_best: int) -> None:
    """UserError unless 1 <= n_best <= beam."""
    if not 1 <= n_best <= beam:
        raise UserError(
            f"a beam of {beam} cannot give the {n_best} best; give a beam of at least n-best, both at least 1"
        )
