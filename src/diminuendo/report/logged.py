"""A run as its directory tells it, finished or not."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from diminuendo.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoggedRun:
    """identity: run.json. lines: log.jsonl, at least one. result: result.json, None while not finished.

    name: what the report calls it. written: when the result was, or else the log's last line.
    """

    name: str
    identity: Mapping[str, Any]
    lines: tuple[Mapping[str, Any], ...]
    result: Mapping[str, Any] | None
    written: datetime


def read_run(directory: Path, name: str) -> LoggedRun:
    """Raises UserError for a directory that holds no run, or one that logged nothing, or a damaged file in it."""
    path = directory / "run.json"
    if not path.is_file():
        raise UserError(f"{directory} holds no run (no run.json); give the --out of a compress or pretrain")
    lines = _read_log(directory / "log.jsonl")
    finished = directory / "result.json"
    result = _object(finished, finished.read_text(errors="replace")) if finished.is_file() else None
    last = (directory / "log.jsonl" if result is None else finished).stat().st_mtime
    identity = _object(path, path.read_text(errors="replace"))
    return LoggedRun(name, identity, lines, result, datetime.fromtimestamp(last, UTC))


def _read_log(path: Path) -> tuple[dict[str, Any], ...]:
    texts = path.read_text(errors="replace").splitlines() if path.is_file() else []
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(_line(f"{path}, line {number}", text))
        except UserError:
            if number < len(texts):
                raise
            log.warning("%s: the last line is broken, as when a run is killed while writing; it is left out", path)
    if not lines:
        raise UserError(f"{path.parent}: the run has logged nothing yet (an empty log.jsonl); let it take some steps")
    return tuple(lines)


def _line(where: Path | str, text: str) -> dict[str, Any]:
    line = _object(where, text)
    if not {"stage", "total_step"} <= line.keys():
        raise UserError(f"{where}: expected a stage and a total_step, got {', '.join(line) or 'nothing'}")
    return line


def _object(where: Path | str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error}); restore the file, or run again") from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object, got {text[:40]!r}")
    return value
