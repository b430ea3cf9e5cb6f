"""The results of the step benchmark as Markdown tables: times beside floor and published code, and parts of the step.

python -m benchmarks.step.table
"""

import json
from collections.abc import Sequence
from typing import Any

from benchmarks.record import RESULTS
from benchmarks.step.ours import PARTS, SIZES, STATES


def results() -> list[dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in (RESULTS / "step").glob("*.json")]
    sizes = list(SIZES)
    return sorted(
        found, key=lambda r: (sizes.index(r["size"]), r["clip_seconds"], r["precision"] != "fp32", r["threads"])
    )


def name(result: dict[str, Any]) -> str:
    threads = f"{result['threads']} thread" + "s" * (result["threads"] > 1)
    return f"{result['size']}, {result['clips']} x {result['clip_seconds']:g} s, {result['precision']}, {threads}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def times(found: Sequence[dict[str, Any]]) -> str:
    head = ["", "floor, s", *(f"ours, {state}" for state in STATES), "published", *(f"ratio, {s}" for s in STATES)]
    rows = []
    for result in found:
        seconds = result["median_seconds"]
        cells = [f"{result['floor_seconds']:.1f}", *(f"{seconds[state]:.1f}" for state in STATES)]
        cells.append(f"{seconds['published']:.1f}" if "published" in seconds else "")
        ratios = result.get("over_published", {})
        cells += [f"{ratios[state]:.2f}" if ratios else "" for state in STATES]
        memory = [result["peak_memory_mb"].get(who, 0) for who in ("ours", "published")]
        cells += ["does not fit" if peak is None else f"{peak / 1000:.1f}" if peak else "" for peak in memory]
        rows.append([name(result), *cells])
    return markdown([*head, "GB, ours", "GB, published"], rows)


def parts(found: Sequence[dict[str, Any]]) -> str:
    rows = [
        [f"{name(result)}, {state}", *(f"{second:.2f}" for second in _parts_and_sum(result["parts"][state]))]
        for result in found
        for state in STATES
    ]
    return markdown(["seconds, of other steps than above", *PARTS, "sum"], rows)


def _parts_and_sum(seconds: dict[str, float]) -> list[float]:
    return [*(seconds[part] for part in PARTS), sum(seconds.values())]


if __name__ == "__main__":
    print(times(results()), parts(results()), sep="\n\n")
