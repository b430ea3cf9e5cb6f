"""What a learning rate is multiplied by, step by step."""

from collections.abc import Callable

Schedule = Callable[[int], float]


def warm_up_then_decay(steps: int, warm_up: float) -> Schedule:
    """Rises linearly from 0 over `warm_up` (a fraction of `steps`), then falls linearly to 0."""
    rise = max(1, round(steps * warm_up))
    return lambda step: min((step + 1) / rise, max(0.0, (steps - step) / max(1, steps - rise)))


def warm_up_hold_decay(steps: int, warm_up: float, decay: float) -> Schedule:
    """Rises linearly from 0 over `warm_up`, holds, and falls linearly to 0 over `decay` (fractions of `steps`)."""
    rise, fall = max(1, round(steps * warm_up)), max(1, round(steps * decay))
    return lambda step: min((step + 1) / rise, 1.0, (steps - step) / fall)


def again(schedule: Schedule, start: int, steps: int, warm_up: float) -> Schedule:
    """`schedule` from the step `start` on, for `steps` more, of which a fraction `warm_up` rises to it from 0.

    The optimiser that goes on is a new one, and its first steps are as long for a small gradient as for a large one.
    """
    rise = max(1, round(steps * warm_up))
    return lambda step: schedule(start + step) * min(1.0, (step + 1) / rise)


def constant(_: int) -> float:
    return 1.0
