"""HTML: one page that needs nothing but itself, for phone and print, light and dark."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from diminuendo.report.style import DARK, LIGHT

Cell = float | str | tuple[float, float, float]
"""A number, a text, or a value with the low and high end of its interval."""


@dataclass(frozen=True)
class Table:
    """A table for a report; the first column names the rows. note: a line below it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.title!r}: expected {len(self.columns)} cells a row, got {list(row)}")


def text_of(cell: Cell) -> str:
    """`94,371,712`, `0.6634`, `0.663 [0.612, 0.710]`: three digits for all of an interval."""
    if isinstance(cell, tuple):
        largest = max(map(abs, cell))
        decimals = 3 if largest <= 1 else max(0, 3 - len(f"{largest:.0f}"))
        value, low, high = (f"{part:,.{decimals}f}" for part in cell)
        return f"{value} [{low}, {high}]"
    if isinstance(cell, str):
        return cell
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.4g}" if abs(cell) < 10_000 else f"{cell:,.0f}"


def table_html(table: Table) -> str:
    """Wide ones scroll within themselves, never the page."""
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in table.columns)
    rows = "".join(f"<tr>{''.join(_cell(cell, i == 0) for i, cell in enumerate(row))}</tr>" for row in table.rows)
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    title = html.escape(table.title)
    return (
        f'<div class="table" role="region" aria-label="{title}" tabindex="0"><table><caption>{title}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}\n"
    )


def _cell(cell: Cell, heads_row: bool) -> str:
    if heads_row:
        return f'<th scope="row">{html.escape(text_of(cell))}</th>'
    kind = "" if isinstance(cell, str) else ' class="number"'
    return f"<td{kind}>{html.escape(text_of(cell))}</td>"


def figure_html(svg: str, caption: str, note: str = "") -> str:
    below = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{svg}{below}</figure>\n"


def page(title: str, body: str) -> str:
    heading = html.escape(title)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{heading}</title>
<style>
:root {{ color-scheme: light dark; {_variables(LIGHT)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
{_CSS}</style>
</head>
<body>
<main>
<h1>{heading}</h1>
{body}</main>
</body>
</html>
"""


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


_CSS = """\
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 0.5rem; padding-top: 1rem; border-top: 2px solid var(--faint); }
h1, h2, td:nth-child(2):last-child { overflow-wrap: anywhere; }
p { margin: 0.3rem 0; }
.note, figcaption, caption { font-size: 0.875rem; }
.note { color: var(--muted); max-width: 45rem; }
.state { border-left: 4px solid var(--orange); padding-left: 0.6rem; font-weight: 600; }
figcaption, caption { font-weight: 600; text-align: left; padding-bottom: 0.3rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.25rem 2rem; }
.grid { align-items: start; margin: 1.5rem 0; }
figure { margin: 0; break-inside: avoid; min-width: 0; }
svg { display: block; width: 100%; max-width: 34rem; height: auto; }
svg text { font-family: system-ui, sans-serif !important; }
.table { overflow-x: auto; margin: 1rem 0 0.3rem; break-inside: avoid; }
table { border-collapse: collapse; font-size: 0.875rem; line-height: 1.35; }
th, td { padding: 0.3rem 0.9rem 0.3rem 0; text-align: left; vertical-align: top; min-width: 4.5rem; }
tr { border-bottom: 1px solid var(--faint); break-inside: avoid; }
thead th { color: var(--muted); font-weight: 600; }
tbody th { font-weight: 500; }
.number { font-variant-numeric: tabular-nums; }
@media print {
  :root { font-size: 9.5pt; }
  main { max-width: none; padding: 0; }
  .grid { grid-template-columns: 1fr 1fr; }
  .grid { gap: 0.5rem 1.5rem; margin: 0.5rem 0; }
  .table { overflow: visible; }
  th, td { padding: 0.15rem 0.6rem 0.15rem 0; min-width: 3rem; }
  section + section { break-before: page; }
  h2, figcaption, caption { break-after: avoid; }
}
"""
