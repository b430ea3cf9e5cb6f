"""What a person sees of a long run (on standard error), and what TensorBoard gets."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from diminuendo.errors import UserError

SECONDS_BETWEEN_LINES = 10.0
# Steps; shorter runs are over before an estimate of them is.
WORTH_ESTIMATING = 100

T = TypeVar("T")


class Diverged(UserError):  # noqa: N818 - what happened, as with Interrupted
    """A loss or gradients that are not finite."""


class StageProgress:
    """A progress bar on a terminal; elsewhere a line every now and then; nothing when quiet."""

    def __init__(self, name: str, steps: int, done: int, *, offset: int, quiet: bool, tensorboard: Path | None) -> None:
        self.name, self.steps, self.quiet = name, steps, quiet
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
        )
        self.task = self.bar.add_task(name, total=steps, completed=done, state="")
        # What was written after the checkpoint will be written again.
        self.writer = None if tensorboard is None else SummaryWriter(str(tensorboard), purge_step=offset + done + 1)
        self.first = done
        self.started = self.next_line = time.monotonic()

    def __enter__(self) -> "StageProgress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        if self.writer is not None:
            self.writer.close()

    def advance(self) -> None:
        self.bar.advance(self.task)

    def report(self, step: int, total_step: int, values: Mapping[str, float]) -> None:
        """Shows the values of an interval that ends with `step` steps done."""
        self.say(step, describe(values))
        if self.writer is not None:
            for key, value in values.items():
                self.writer.add_scalar(f"{self.name}/{key}", value, total_step)

    def say(self, step: int, text: str) -> None:
        """Beside the bar; where there is none, now and then in a line of its own."""
        self.bar.update(self.task, state=text)
        now = time.monotonic()
        if not self.console.is_terminal and (now > self.next_line or step == self.steps):
            self.next_line = now + SECONDS_BETWEEN_LINES
            each = (time.monotonic() - self.started) / max(1, step - self.first)
            left = duration_text(each * (self.steps - step))
            self.print(f"{self.name} {step}/{self.steps}  {text}  {left} left")

    def print(self, line: str) -> None:
        if not self.quiet:
            self.console.print(line, highlight=False, soft_wrap=True)


def tracked(items: Iterable[T], name: str, unit: str, quiet: bool, total: int | None = None) -> Iterator[T]:
    """The items one by one, with a bar, and soon an estimate of how long whoever takes them needs for all.

    total: how many there are, of those that do not know it.
    """
    number = len(items) if isinstance(items, Sized) else total or 0
    with StageProgress(name, number, 0, offset=0, quiet=quiet, tensorboard=None) as progress:
        for done, item in enumerate(items, 1):
            started = time.monotonic()
            yield item
            progress.advance()
            if done == 2:  # the first one warms up
                each = time.monotonic() - started
                progress.print(f"about {duration_text(each * number)} for {number:,} {unit} (from one)")
            progress.say(done, unit)


class Meter:
    """Means of scalars since the last look, and how much audio went by. rate: the setting that may be too high."""

    def __init__(self, num_processes: int, accumulate: int = 1, rate: str = "learning_rate") -> None:
        self.num_processes, self.accumulate, self.rate = num_processes, accumulate, rate
        self._reset()

    def _reset(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: Counter[str] = Counter()  # a flat start has fewer scalars
        self.watched = torch.zeros(())
        self.count, self.seconds, self.started = 0, 0.0, time.monotonic()

    def add(self, scalars: dict[str, torch.Tensor], seconds: float) -> None:
        for name, value in scalars.items():
            self.counts[name] += 1
            self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value.detach()
        self.count, self.seconds = self.count + 1, self.seconds + seconds

    def watch(self, *values: torch.Tensor) -> None:
        """Values that must be finite, as scalars must; whether they are is seen at the next look."""
        for value in values:
            self.watched = self.watched.to(value.device) + 0.0 * value.detach().sum()

    def check(self) -> None:
        """Raises Diverged if scalars or gradients are not finite: nothing after that would be worth having."""
        if not all(value.isfinite() for value in (self.watched, *self.sums.values())):
            values = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
            raise Diverged(
                f"training diverged, or gradients did: {values}; a lower learning rate may help, like "
                f"--set {self.rate}=1e-4, in another --out"
            )

    def take(self) -> dict[str, float]:
        """As `check`, and starts anew."""
        self.check()
        values = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        elapsed = max(1e-9, time.monotonic() - self.started)
        rate, step = self.seconds / elapsed * self.num_processes, elapsed * self.accumulate / self.count
        self._reset()
        return {**values, "audio_seconds_per_second": round(rate, 3), "seconds_per_step": round(step, 5)}


TERMS = ("task", "l1", "cosine", "clusters", "posteriors")


def describe(values: Mapping[str, Any]) -> str:
    """`loss 0.412  l1 0.301  cosine 0.111  kept 0.310 (target 0.250)  142 s/s`."""
    parts = [f"{name} {values[name]:.3f}" for name in ("loss", *TERMS) if name in values]
    if "expected_kept" in values:
        parts.append(f"kept {values['expected_kept']:.3f} (target {values['target_kept']:.3f})")
    if "accuracy" in values:
        parts.append(f"accuracy {values['accuracy']:.3f}")
    parts.append(f"{values['audio_seconds_per_second']:.0f} s/s")
    return "  ".join(parts)


def duration_text(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`, `2.1 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"
