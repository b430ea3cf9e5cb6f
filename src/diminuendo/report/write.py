"""The report of one run or several: figures, layer map, curves, configuration, in one file."""

import html
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from diminuendo.errors import UserError
from diminuendo.report.curves import curves_of, draw_curves
from diminuendo.report.layer_map import describe, layer_map
from diminuendo.report.logged import LoggedRun, read_run
from diminuendo.report.page import Cell, Table, figure_html, page, table_html, text_of
from diminuendo.report.style import inline_svg
from diminuendo.training.progress import duration_text

log = logging.getLogger(__name__)

_SIZES = {"params": "Parameters", "macs_per_second": "MACs per second of audio"}
# In sections of their own, or of no use on another machine.
_ELSEWHERE = {"shape", "full_shape", "out", "latency_ms"}
_FACTS = {
    **_SIZES,
    "removal_error": "Removal error",
    "expected_before_selection": "Expected kept before selection",
    "seconds": "Time taken",
}
_MAP_NOTE = (
    "Bars: kept members over what there was; layers count from 0, the signal runs downwards. A removed sublayer has no "
    "bar; one with none of its members left still adds its output bias."
)


def write_report(
    runs: Sequence[Path], out: Path, *, tables: Sequence[Table] = (), title: str = "diminuendo report"
) -> Path:
    """Writes one HTML file about `runs` (directories) and `tables` to `out`, beside it first and then renamed.

    A run that is not finished is reported as far as it came. Raises UserError if one of the directories holds no run,
    has logged nothing or is damaged, or if `out` cannot be written.
    """
    if not runs and not tables:
        raise UserError("nothing to report: give at least one directory that compress or pretrain wrote")
    if out.is_dir():
        raise UserError(f"--out {out} is a directory; expected a file, like {out / 'report.html'}")
    names = [run.resolve().name for run in runs]
    logged = [
        read_run(run, name if names.count(name) == 1 else str(run)) for run, name in zip(runs, names, strict=True)
    ]
    comparison = [table_html(_comparison(logged))] if len(logged) > 1 else []
    text = page(title, "".join([*comparison, *map(table_html, tables), *map(_section, logged)]))
    beside = out.with_name(out.name + ".tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")  # a run's directory may be called anything
        os.replace(beside, out)
    except OSError as error:
        raise UserError(
            f"--out {out} cannot be written ({error.strerror}): give another place, or make room"
        ) from error
    log.info("report: %s", out)
    return out


def _comparison(runs: Sequence[LoggedRun]) -> Table:
    columns = ("Run", "Recipe", "Parameters", "kept", "MACs/s", "kept", "Removal error", "Distillation loss", "Time")
    rows = []
    for run in runs:
        result = run.result or {}
        sizes = [cell for key in _SIZES for cell in _after(result.get(key))]
        rows.append(
            (
                run.name,
                " ".join(str(run.identity[key]) for key in ("command", "recipe") if run.identity.get(key)),
                *sizes,
                _fact("removal_error", result["removal_error"]) if result.get("removal_error") is not None else "-",
                run.lines[-1]["loss"] if run.lines[-1].get("stage") == "distil" and _distils(run) else "-",
                "not finished"
                if run.result is None
                else _fact("seconds", result["seconds"])
                if "seconds" in result
                else "-",
            )
        )
    return Table("Comparison", columns, rows)


def _distils(run: LoggedRun) -> bool:
    return str(run.identity.get("config", {}).get("objective", "distillation")) == "distillation"


def _after(size: Mapping[str, float] | float | None) -> tuple[Cell, Cell]:
    """A size and what it is of the one before; a run that made nothing smaller has one size."""
    if isinstance(size, dict):
        return _amount(size["student"]), f"{size['kept']:.1%}"
    return (_amount(size) if isinstance(size, int | float) else "-"), "-"


def _section(run: LoggedRun) -> str:
    parts = [f"<section>\n<h2>{html.escape(run.name)}</h2>\n"]
    last, result = run.lines[-1], run.result
    if result is None:
        state = f"not finished: last logged was stage {last['stage']}, step {last.get('step', last['total_step'])}"
        parts.append(f'<p class="state">{html.escape(state)}, {run.written:%Y-%m-%d %H:%M} UTC</p>\n')
    headline = map(table_html, (*_headline(result or {}), _facts(run)))
    parts.append(f'<div class="grid">\n<div>{"".join(headline)}</div>{_map(run)}</div>\n')
    parts.append(f'<div class="grid">\n{"".join(_curves(run))}</div>\n')
    settings = [
        (name if key == "config" else f"{key}.{name}", "default" if value is None else _text(value))
        for key, values in run.identity.items()
        if isinstance(values, dict)
        for name, value in values.items()
    ]
    if settings:
        parts.append(table_html(Table("Configuration", ("Setting", "Value"), settings)))
    return "".join([*parts, "</section>\n"])


def _headline(result: Mapping[str, Any]) -> Iterator[Table]:
    rows = [
        (title, _amount(size["teacher"]), _amount(size["student"]), f"{size['kept']:.1%}")
        for key, title in _SIZES.items()
        if isinstance(size := result.get(key), dict)
    ]
    note = ""
    if latency := result.get("latency_ms"):
        before, after, promised = (f"{latency[key]:.4g}" for key in ("teacher", "student", "promised"))
        rows.append(("Latency, ms", before, after, f"{latency['kept']:.1%}"))
        note = (
            f"Latency: 10 s of audio, batch 1, medians of 20 runs in turn ({latency['device']}, threads: "
            f"{latency['threads']}). Promised: {promised} ms, {latency['promised_kept']:.1%}."
        )
    if rows:
        yield Table("Size", ("Measure", "Before", "After", "Kept"), rows, note)


def _facts(run: LoggedRun) -> Table:
    """All that result and run say of themselves in a word or a number."""
    result = run.result or {}
    sized = {key for key in _SIZES if isinstance(result.get(key), dict)}
    found = {key: _fact(key, value) for key, value in result.items() if key not in _ELSEWHERE | sized}
    found |= {} if run.result is None else {"finished": f"{run.written:%Y-%m-%d %H:%M} UTC"}
    found |= {key: _text(value) for key, value in run.identity.items() if not isinstance(value, dict)}
    rows = [(_FACTS.get(key, key.replace("_", " ").capitalize()), value) for key, value in found.items()]
    return Table("Run", ("Fact", "Value"), rows)


def _fact(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == "removal_error":
        return f"{value:.1e}"
    if key == "seconds":
        return duration_text(value)
    return f"{value:.2%}" if key == "expected_before_selection" else _text(value)


def _map(run: LoggedRun) -> str:
    shape, full_shape = ((run.result or {}).get(key) for key in ("shape", "full_shape"))
    if not (shape and full_shape):
        return ""
    drawn = inline_svg(layer_map(shape, full_shape), f"{run.name}: {describe(shape, full_shape)}")
    return figure_html(drawn, "Layer map", _MAP_NOTE)


def _curves(run: LoggedRun) -> Iterator[str]:
    together = run.identity.get("command") == "compress"

    def title(line: Mapping[str, Any]) -> str:
        # The stages of a compression minimise one loss, but that of a new front end; those of a pretraining their own.
        return "" if together and line["stage"] != "front_end" else f", stage {line['stage']}"

    for stage, group in groupby(run.lines, key=title):
        lines = tuple(group)
        for curves in curves_of(lines):
            drawn = inline_svg(draw_curves(curves, lines), f"{run.name}{stage}: {curves.label(lines)}")
            yield figure_html(drawn, f"{curves.title}{stage}")


def _amount(value: float) -> str:
    """`94.4 M`, `7.17 G`: three digits; below 10,000 in full."""
    if value < 1e4:
        return f"{value:,.0f}"
    value = float(f"{value:.3g}")
    unit, size = next((unit, size) for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)) if value >= size)
    return f"{value / size:#.3g}".rstrip(".") + f" {unit}"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-" if value is None else str(value)
    return text_of(value)
