"""The layer map: the shape of a compressed model, drawn. Any family's: panels follow from the axes' names."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diminuendo.report.style import LIGHT, WIDTH, house_style
from diminuendo.structure.shape import Kept

_TITLES = {
    "channels": "Convolution channels",
    "groups": "Positional groups",
    "attention.heads": "Attention heads",
    "feed_forward.neurons": "Feed-forward neurons",
    "width": "Width of the residual stream",
}
_COLOURS = {"channels": "green", "groups": "purple", "heads": "blue", "neurons": "orange"}

# In points.
_ROW, _BAR, _TITLE, _GAP, _NUMBERS, _LETTER = 14.0, 9.0, 18.0, 10.0, 18.0, 5.2


@dataclass(frozen=True)
class Row:
    """One axis of the map. layer: None where there is only one. full: None if nothing was left of it before.

    kept: None for the ranks of a matrix that is dense.

    sublayer_gone: the sublayer around it was removed.
    """

    name: str
    layer: int | None
    kept: Kept | None
    full: Kept | None
    sublayer_gone: bool

    @property
    def drawn(self) -> bool:
        return self.full is not None and self.kept is not None and not self.sublayer_gone

    @property
    def text(self) -> str:
        """`384 / 3,072`, or what became of it."""
        if self.full is None:
            return "gone before"
        if self.sublayer_gone:
            return "removed"
        return "dense" if self.kept is None else f"{_count(self.kept):,} / {_count(self.full):,}"


@dataclass(frozen=True)
class Panel:
    """What repeats in the layers of one stack: rows by layer."""

    stack: str
    part: str
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        plain = self.part.replace(".", " ").replace("_", " ").capitalize()
        return _TITLES.get(self.part, plain)

    @property
    def span(self) -> int:
        """Members from end to end."""
        ends = [
            row.full if isinstance(row.full, int) else max(row.full, default=0) + 1 for row in self.rows if row.full
        ]
        return max(ends, default=1)


def panels(shape: Mapping[str, Kept], full_shape: Mapping[str, Kept]) -> tuple[Panel, ...]:
    """The shape's axes by stack and part, as the signal meets them; a sublayer's own axis shows in those inside it.

    shape may name axes that full_shape does not: those that an earlier compression had emptied.
    """
    names = list(dict.fromkeys([*full_shape, *shape]))
    found: dict[tuple[str, str], list[Row]] = {}
    for name in names:
        if any(other.startswith(f"{name}.") for other in names):
            continue
        around = [other for other in names if name.startswith(f"{other}.")]
        gone = any(not shape.get(other, 1) for other in around)
        match = re.fullmatch(r"(.+?)\.(\d+)\.(.+)", name)
        stack, layer, part = match.groups() if match else (*name.rpartition(".")[:1], None, name.rpartition(".")[2])
        kept, full = shape.get(name), full_shape.get(name)
        if name == "width":  # hundreds of cells would not be seen
            kept, full = _counted(kept), _counted(full)
        row = Row(name, None if layer is None else int(layer), kept, full, gone)
        found.setdefault((stack, part), []).append(row)
    return tuple(
        Panel(stack, part, tuple(sorted(rows, key=lambda row: row.layer or 0))) for (stack, part), rows in found.items()
    )


def describe(shape: Mapping[str, Kept], full_shape: Mapping[str, Kept]) -> str:
    """The map in words, for whoever cannot see it."""
    said = [f"{panel.title}: {'; '.join(row.text for row in panel.rows)}." for panel in panels(shape, full_shape)]
    return f"Layer map, what was kept of how many, from the first layer to the last. {' '.join(said)}"


def layer_map(shape: Mapping[str, Kept], full_shape: Mapping[str, Kept]) -> Figure:
    """Bars of kept members over what there was, a row a layer, the signal running downwards; 5 inches wide.

    Bars carry their axis' name as gid. A removed sublayer has no bar.
    """
    bands = _bands(panels(shape, full_shape))
    heights = [_TITLE + _ROW * max(len(panel.rows) for panel in band) for band in bands]
    height = sum(heights) + _GAP * (len(bands) + 1)
    with house_style():
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        top = _GAP
        for band, room in zip(bands, heights, strict=True):
            width = WIDTH / len(band)
            for i, panel in enumerate(band):
                numbers = _LETTER * max((len(row.text) for row in panel.rows if row.drawn), default=0)
                left, right = i * width + _NUMBERS, (i + 1) * width - numbers - 6
                tall = _ROW * len(panel.rows)
                box = (left / WIDTH, 1 - (top + _TITLE + tall) / height, (right - left) / WIDTH, tall / height)
                _draw(figure.add_axes(box), panel, numbers / (right - left) * panel.span)
            top += room + _GAP
    return figure


def _bands(found: Sequence[Panel]) -> list[list[Panel]]:
    """Panels of one stack, two beside each other."""
    stacks: dict[str, list[Panel]] = {}
    for panel in found:
        stacks.setdefault(panel.stack, []).append(panel)
    return [band[i : i + 2] for band in stacks.values() for i in range(0, len(band), 2)]


def _draw(axes: Axes, panel: Panel, numbers: float) -> None:
    """numbers: the width of the column right of the bars, in members."""
    colour = LIGHT[_COLOURS.get(panel.part.rpartition(".")[2], "blue")]
    for y, row in enumerate(panel.rows):
        if row.drawn and row.full is not None and row.kept is not None:
            axes.barh(**_bars(row.full, y), color=LIGHT["faint"])
            for bar in axes.barh(**_bars(row.kept, y), color=colour):
                bar.set_gid(row.name)
            axes.text(panel.span + numbers, y, row.text, ha="right", va="center_baseline")
        else:
            axes.text(0, y, row.text, va="center_baseline", color=LIGHT["muted"], style="italic")
    axes.set_title(panel.title, loc="left", fontweight="bold", pad=5)
    axes.set_xlim(0, panel.span)
    axes.set_ylim(len(panel.rows) - 0.5, -0.5)
    axes.set_xticks([])
    layers = [row.layer for row in panel.rows]
    axes.set_yticks(range(len(layers)), ["" if layer is None else str(layer) for layer in layers])
    axes.tick_params(length=0, pad=3)
    axes.spines[:].set_visible(False)


def _bars(members: Kept, y: int) -> dict[str, Any]:
    """One bar for so many members; a cell for each where it matters which they are."""
    height = _BAR / _ROW
    if isinstance(members, int):
        return {"y": [y], "width": [members], "height": height}
    return {"y": [y] * len(members), "left": members, "width": 0.9, "height": height}


def _counted(members: Kept | None) -> Kept | None:
    return None if members is None else _count(members)


def _count(members: Kept) -> int:
    return members if isinstance(members, int) else len(members)
