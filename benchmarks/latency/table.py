"""The results of the latency benchmark as Markdown.

    python -m benchmarks.latency.table

Fractions of the whole model's latency: what the budget promised, and medians of runs in turn. "Furthest part" is, of
the parts that take a twentieth or more, the one whose own promise was missed by most.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.latency.__main__ import CASES, FOLDER
from benchmarks.step.table import markdown

SMALL = 0.05


def _furthest(parts: Mapping[str, tuple[float, float]], promised: float) -> str:
    ratios = {name: taken / share for name, (share, taken) in parts.items() if share >= SMALL * promised}
    name = max(ratios, key=lambda name: abs(ratios[name] - 1))
    return f"{name} {ratios[name]:.2f}"


def rows(folder: Path) -> list[list[str]]:
    found = []
    for name in CASES:
        path = folder / f"{name}.json"
        result: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"results": {}}
        for order, one in result["results"].items():
            numbers = [f"{one[key]:.3f}" for key in ("macs", "promised", "measured")]
            ratio = f"{one['measured_over_promised']:.2f}"
            found.append([name, order, *numbers, ratio, _furthest(one["parts"], one["promised"])])
    return found


if __name__ == "__main__":
    head = ["", "order, budget", "MACs kept", "latency promised", "measured", "measured / promised", "furthest part"]
    print(markdown(head, rows(FOLDER)))
