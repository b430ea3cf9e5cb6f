"""Where in a step time goes, on processors and on GPUs."""

import time
from typing import Any

import torch


class Clock:
    """Runs from its making on. On a GPU a mark is passed when the work queued before it is done, and nothing waits."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks = [("", self._now())]

    def mark(self, part: str) -> None:
        """The time since the mark before belongs to `part`."""
        self.marks.append((part, self._now()))

    def seconds(self) -> dict[str, float]:
        """By part, those that come more than once summed."""
        found: dict[str, float] = {}
        for (_, before), (part, at) in zip(self.marks, self.marks[1:], strict=False):
            found[part] = found.get(part, 0.0) + _between(before, at)
        return found

    def _now(self) -> Any:
        if self.device.type == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def _between(before: Any, after: Any) -> float:
    if isinstance(before, float):
        return float(after - before)
    after.synchronize()
    return float(before.elapsed_time(after)) / 1000
