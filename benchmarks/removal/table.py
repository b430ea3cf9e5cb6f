"""The results of the removal benchmark as Markdown.

    python -m benchmarks.removal.table

"Difference" is the largest relative one of any hidden state from the original with gates on what was removed.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS
from benchmarks.step.table import markdown

NAMES = {"ours": "diminuendo", "general": "Torch-Pruning"}
HEAD = (
    *("asked", "by", "removal, s", "MACs kept", "parameters kept", "latency, ms", "over original", "difference"),
    *("saved and loaded by transformers", "pickled whole"),
)


def results(folder: Path) -> list[dict[str, Any]]:
    return sorted((json.loads(path.read_text()) for path in folder.glob("*.json")), key=lambda found: -found["keep"])


def table(found: list[dict[str, Any]]) -> str:
    return markdown(HEAD, [_row(result, who) for result in found for who in NAMES])


def _row(result: dict[str, Any], who: str) -> list[str]:
    row = [f"{result['keep']:g}", NAMES[who]]
    if who in result["failed"]:
        return [*row, result["failed"][who], *[""] * (len(HEAD) - 3)]
    made = result[who]
    parts = made["seconds"]
    difference = made["difference_from_gated"]
    return [
        *row,
        f"{sum(parts.values()):.2f} (" + ", ".join(f"{part} {value:.2f}" for part, value in parts.items()) + ")",
        f"{made['macs_kept']:.4f}",
        f"{made['parameters_kept']:.4f}",
        f"{made['p50_ms']:.0f}",
        f"{made['over_original']:.3f}",
        f"{difference:.1e}" if isinstance(difference, float) else difference,
        made["transformers"],
        made["pickled"],
    ]


def notes(found: list[dict[str, Any]]) -> str:
    """What compares the two, and what the general pruner's user does by hand."""
    lines = [
        f"- {result['keep']:g}: latency of diminuendo's over the general pruner's {result['ours_over_general']:.3f}; "
        f"of the members that both could keep {result['same_members']:.1%} are the same"
        for result in found
        if "same_members" in result
    ]
    steps = dict.fromkeys(step for result in found for step in result["manual_steps"])
    return "\n".join([*lines, "- by hand, for the general pruner:", *(f"  - {step}" for step in steps)])


if __name__ == "__main__":
    kept = results(RESULTS / "removal")
    print(table(kept), notes(kept), sep="\n\n")
