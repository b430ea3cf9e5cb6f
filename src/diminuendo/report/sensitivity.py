"""How far the last hidden state moves when one axis is cut to half, over the layers: a panel for every kind of axis."""

import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from diminuendo.evaluation.sensitivity import AxisSensitivity
from diminuendo.report.style import LIGHT, WIDTH, house_style

_TITLES = {
    "channels": "Convolution channels, half of them",
    "groups": "Positional groups, half of them",
    "heads": "Attention heads, half of them",
    "neurons": "Feed-forward neurons, half of them",
    "sublayer": "Sublayers, the whole of one",
    "ranks": "Ranks of matrices, half of them",
    "width": "Width of the residual stream, half of it",
}
_COLOURS = ("blue", "orange", "green", "purple")
_PANEL = 120.0  # points

Line = list[tuple[int, float]]
"""Layers and changes."""


def lines_of(rows: Sequence[AxisSensitivity]) -> dict[str, dict[str, Line]]:
    """For every kind of axis its lines by name: what repeats in the layers. An axis without a layer is at 0."""
    found: dict[str, dict[str, Line]] = {}
    for row in rows:
        match = re.fullmatch(r"(.+?)\.(\d+)\.(.+)", row.axis)
        layer, part = (int(match[2]), match[3]) if match else (0, row.axis)
        name = part.removesuffix(f".{row.kind}").replace(".", " ").replace("_", " ")
        found.setdefault(row.kind, {}).setdefault(name, []).append((layer, row.last))
    return found


def sensitivity_plot(rows: Sequence[AxisSensitivity]) -> Figure:
    """Panels below each other with one scale of changes, so that they can be compared; 5 inches wide."""
    panels = lines_of(rows)
    with house_style():
        figure = Figure(figsize=(WIDTH / 72, len(panels) * _PANEL / 72), layout="constrained")
        all_axes = figure.subplots(len(panels), squeeze=False, sharey=True)[:, 0]
        for axes, (kind, lines) in zip(all_axes, panels.items(), strict=True):
            _draw(axes, _TITLES[kind], lines)
        all_axes[0].set_ylim(bottom=0)
        all_axes[-1].set_xlabel("layer")
        figure.supylabel("relative change of the last hidden state", fontsize="medium")
    return figure


def _draw(axes: Axes, title: str, lines: Mapping[str, Line]) -> None:
    for colour, (name, points) in zip(cycle(_COLOURS), lines.items(), strict=False):
        layers, changes = zip(*points, strict=True)
        axes.plot(layers, changes, color=LIGHT[colour], linewidth=1.5, marker="o", markersize=2.5, label=name)
    axes.set_title(title, loc="left", fontweight="bold")
    if any(layer for points in lines.values() for layer, _ in points):
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    else:
        axes.set_xticks([])  # there is one only
    axes.grid(axis="y", linewidth=0.7)
    axes.set_axisbelow(True)
    if len(lines) > 1:
        axes.legend(loc="upper right", ncols=2, borderpad=0)


def write_sensitivity(result: Mapping[str, Any], rows: Sequence[AxisSensitivity], directory: Path) -> None:
    """result.json, and the plot as SVG; each beside first and then renamed."""
    drawn = io.StringIO()
    # The same rows give the same file: no date, no random names.
    with matplotlib.rc_context({"svg.hashsalt": "sensitivity"}):
        sensitivity_plot(rows).savefig(drawn, format="svg", metadata={"Date": None})
    for name, text in (("sensitivity.svg", drawn.getvalue()), ("result.json", json.dumps(result, indent=2) + "\n")):
        beside = directory / f"{name}.tmp"
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, directory / name)
