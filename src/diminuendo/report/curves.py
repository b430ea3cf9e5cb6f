"""What a run logged, over its steps."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from diminuendo.report.style import LIGHT, WIDTH, house_style

_HEIGHT = 190.0
_COLOURS = ("blue", "orange", "green", "purple")
_FEW = 30
_COUNTERS = ("stage", "step", "total_step")

_TITLES = {
    ("loss", "distillation"): "Loss",
    ("l1", "cosine"): "Parts of the distillation loss",
    ("accuracy",): "Accuracy",
    ("expected_kept", "target_kept"): "Kept fraction of the cost",
    ("multiplier_1", "multiplier_2"): "Multipliers of the budget",
    ("audio_seconds_per_second",): "Throughput, seconds of audio per second",
}
_NAMES = {
    "loss": "loss minimised",
    "l1": "L1",
    "expected_kept": "expected",
    "target_kept": "target",
    "multiplier_1": "linear",
    "multiplier_2": "quadratic",
}
_FROM_ZERO = ("accuracy", "expected_kept", "audio_seconds_per_second")


@dataclass(frozen=True)
class Curves:
    """Scalars that share a scale: one figure."""

    title: str
    keys: tuple[str, ...]

    def label(self, lines: Sequence[Mapping[str, Any]]) -> str:
        """The figure in words: first and last value of each."""
        said = []
        for key in self.keys:
            values = [line[key] for line in lines if key in line]
            said.append(f"{_name(key)} from {values[0]:.4g} to {values[-1]:.4g}")
        return f"{self.title} over {lines[-1]['total_step'] - _before(lines)} steps: {', '.join(said)}."


def _before(lines: Sequence[Mapping[str, Any]]) -> int:
    """The total_step before the first of lines: below zero where a front end learns first."""
    return int(lines[0]["total_step"] - lines[0].get("step", 0))


def curves_of(lines: Sequence[Mapping[str, Any]]) -> Iterator[Curves]:
    """Which figures the log's lines ask for: every number in them is in one."""
    keys = list(dict.fromkeys(key for line in lines for key in line if key not in _COUNTERS))
    for together, title in _TITLES.items():
        present = tuple(key for key in together if key in keys)
        if present:
            yield Curves(title, present)
    known = {key for together in _TITLES for key in together}
    yield from (Curves(_name(key).capitalize(), (key,)) for key in keys if key not in known)


def draw_curves(curves: Curves, lines: Sequence[Mapping[str, Any]]) -> Figure:
    """Over total_step, the boundaries of stages marked; 5 inches wide."""
    with house_style():
        figure = Figure(figsize=(WIDTH / 72, _HEIGHT / 72), layout="constrained")
        axes = figure.add_subplot()
        for colour, key in zip(_COLOURS, curves.keys, strict=False):
            points = [(line["total_step"], line[key]) for line in lines if key in line]
            (line,) = axes.plot(*zip(*points, strict=True), color=LIGHT[colour], linewidth=1.5, label=_name(key))
            line.set_linestyle((0, (4, 2)) if key == "target_kept" else "-")
            line.set(marker="o" if len(points) <= _FEW else "", markersize=2.5)
        if curves.keys[0] in _FROM_ZERO:
            axes.set_ylim(bottom=0)
        axes.set_xlim(_before(lines), lines[-1]["total_step"])
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("step")
        axes.grid(axis="y", linewidth=0.7)
        axes.set_axisbelow(True)
        _mark_stages(axes, lines)
        if len(curves.keys) > 1:
            figure.legend(loc="outside upper left", ncols=len(curves.keys))
    return figure


def _mark_stages(axes: Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    """A line where a stage ends, every stage's name above its part."""
    ends = [a["total_step"] for a, b in pairwise(lines) if a["stage"] != b["stage"]]
    stages = [lines[0]["stage"], *(b["stage"] for a, b in pairwise(lines) if a["stage"] != b["stage"])]
    for end in ends:
        axes.axvline(end, color=LIGHT["muted"], linewidth=1, linestyle=(0, (2, 2)))
    for start, stage in zip([axes.get_xlim()[0], *ends], stages, strict=True):
        axes.annotate(
            stage,
            (start, 1),
            xycoords=("data", "axes fraction"),
            xytext=(2, 3),
            textcoords="offset points",
            color=LIGHT["muted"],
        )


def _name(key: str) -> str:
    return _NAMES.get(key, key.replace("_", " "))
