"""The results of the step benchmark as Markdown tables: times beside floor and published code, and parts of the step.

    python -m benchmarks.step.table

"Busy" is the least share of its threads' time that a measured step had: below 0.95 with one thread, something else ran.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS
from benchmarks.step.ours import PARTS, SIZES, STATES
from diminuendo.errors import UserError


def results(folder: Path) -> list[dict[str, Any]]:
    """In the order of the table. UserError if they are of several commits or machines."""
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    for key in ("commit", "machine", "device"):
        if len({json.dumps(result[key], sort_keys=True) for result in found}) > 1:
            raise UserError(f"{folder} has results of more than one {key}: keep those of one")
    sizes = list(SIZES)
    return sorted(
        found,
        key=lambda r: (sizes.index(r["size"]), r["clip_seconds"], r["clips"], r["precision"] != "fp32", r["threads"]),
    )


def name(result: dict[str, Any]) -> str:
    where = result["device"]
    if where == "cpu":
        where = f"{result['threads']} thread" + "s" * (result["threads"] > 1)
    return f"{result['size']}, {result['clips']} x {result['clip_seconds']:g} s, {result['precision']}, {where}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def times(found: Sequence[dict[str, Any]]) -> str:
    rows = []
    for result in found:
        medians, floors = result["median_seconds"], result["floor_seconds"]
        cells = [f"{medians[state]:.3g} ({floors[state]:.3g})" for state in STATES]
        cells.append(f"{medians['published']:.3g}" if "published" in medians else "")
        ratios = result.get("over_published", {})
        cells += [f"{ratios[state]:.2f}" if ratios else "" for state in STATES]
        peaks = result["peak_memory_mb"]
        cells += [f"{peaks[who] / 1000:.1f}" if who in peaks else "" for who in ("ours", "published")]
        if "published" in result["does_not_fit"]:
            cells[-1] = "does not fit"
        busy = [share for shares in result["busy"].values() for share in shares]
        rows.append([name(result), *cells, str(result["runs"]), f"{min(busy):.2f}" if busy else ""])
    head = [f"ours, {state}, s (floor)" for state in STATES] + ["published, s", *(f"ratio, {s}" for s in STATES)]
    return markdown(["", *head, "GB, ours", "GB, published", "runs", "busy"], rows)


def parts(found: Sequence[dict[str, Any]]) -> str:
    rows = []
    for result in found:
        for state in STATES:
            seconds = [*(result["parts"][state][part] for part in PARTS)]
            rows.append([f"{name(result)}, {state}", *(f"{second:.3g}" for second in [*seconds, sum(seconds)])])
    return markdown(["seconds of the median step", *PARTS, "sum"], rows)


if __name__ == "__main__":
    try:
        measured = [kept for folder in ("step", "step-cuda") if (kept := results(RESULTS / folder))]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(*(table(kept) for kept in measured for table in (times, parts)), sep="\n\n")
