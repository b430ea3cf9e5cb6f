"""How figures look, and how one becomes part of a page that has a light and a dark side."""

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib.figure import Figure

# A figure's colours, as drawn and on light pages, and what stands for them on dark ones.
LIGHT = {
    "paper": "#ffffff",
    "ink": "#1c2126",
    "muted": "#5c666f",
    "faint": "#dce1e6",
    "blue": "#1f6fb2",
    "orange": "#c2571a",
    "green": "#2b8a57",
    "purple": "#7a4fb0",
}
DARK = {
    "paper": "#15181b",
    "ink": "#e8eaed",
    "muted": "#9aa4ae",
    "faint": "#363d45",
    "blue": "#6db3f2",
    "orange": "#f0985a",
    "green": "#62c78e",
    "purple": "#b99af0",
}

WIDTH = 360.0
"""Of every figure, in points: at this width a narrow phone shows letters of 9 points as 9 pixels."""

_SETTINGS = {
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.edgecolor": LIGHT["muted"],
    "axes.labelcolor": LIGHT["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "xtick.labelcolor": LIGHT["ink"],
    "ytick.labelcolor": LIGHT["ink"],
    "grid.color": LIGHT["faint"],
    "legend.frameon": False,
    "figure.facecolor": LIGHT["paper"],
    "axes.facecolor": LIGHT["paper"],
}


@contextmanager
def house_style() -> Iterator[None]:
    """Around the making of a figure."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def inline_svg(figure: Figure, label: str) -> str:
    """A figure as an svg element that stands alone: colours are the page's variables, `label` is read aloud for it."""
    drawn = io.StringIO()
    # Letters stay letters: smaller, searchable, in the reader's font. The salt is in the names of clips and markers,
    # which would otherwise clash between the figures of a page, or change with every writing.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    svg = drawn.getvalue()
    head, body = re.match(r"<svg ([^>]*)>(.*)", svg[svg.index("<svg ") :], re.DOTALL).groups()  # type: ignore[union-attr]
    view = re.search(r'viewBox="[^"]*"', head).group()  # type: ignore[union-attr]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    for name, colour in LIGHT.items():
        body = body.replace(colour, f"var(--{name})")
    return f'<svg {view} role="img" aria-label="{html.escape(label)}">{body}'
