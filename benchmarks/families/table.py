"""The results of the families benchmark as Markdown: removal and speed, then where the time is.

    python -m benchmarks.families.table

"Of promise" is the speed-up times the ratio of MACs: 1 if time fell as MACs did. "Busy" is the process's share of its
thread while latencies were measured: below 0.95, something else ran. "Rounded": how many times as fast as with widths
that are multiples of 8.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.families.models import MODELS
from benchmarks.families.parts import PARTS
from benchmarks.record import RESULTS
from benchmarks.step.table import markdown
from diminuendo.errors import UserError

KEPT_PROMISE = 0.9  # below, the table says where time was lost


def results(folder: Path) -> list[dict[str, Any]]:
    """In the order of MODELS. UserError if they are of several commits or machines."""
    found = [
        json.loads((folder / f"{name}.json").read_text()) for name in MODELS if (folder / f"{name}.json").is_file()
    ]
    for key in ("commit", "machine"):
        if len({json.dumps(result[key], sort_keys=True) for result in found}) > 1:
            raise UserError(f"{folder} has results of more than one {key}: keep those of one")
    return found


def _against(result: Mapping[str, Any]) -> list[str]:
    return [name for name in ("before", "fast") if name in result["median_ms"]]


def removal(found: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for result in found:
        seconds = result["removal_seconds"]
        longest = max(seconds, key=seconds.__getitem__)
        millions = [f"{result['parameters'][when] / 1e6:.1f}" for when in ("before", "after")]
        rows.append(
            [
                result["title"],
                *millions,
                f"{sum(seconds.values()):.1f}",
                f"{longest} {seconds[longest]:.1f}",
                f"{result['removal_memory_over_model']:.2f}",
                f"{result['removal_error']:.0e}",
            ]
        )
    head = ["", "10^6 parameters", "after", "removal, s", "most of it", "memory, of the model's bytes", "largest error"]
    return markdown(head, rows)


def speed(found: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for result in found:
        ms = result["median_ms"]
        for name in _against(result):
            promise = result[f"of_promise_over_{name}"]
            rows.append(
                [
                    result["title"] + (", our attention" if name == "fast" else ""),
                    f"{ms[name] / 1000:.2f}",
                    f"{ms['after'] / 1000:.3f}",
                    f"{result[f'speed_up_over_{name}']:.2f}",
                    f"{result['macs_ratio']:.3f}",
                    f"{promise:.2f}",
                    f"{result['busy']:.2f}",
                    ", ".join(f"{rate:.2f}" for rate in _rounded(result).values()),
                    note(result, name) if promise < KEPT_PROMISE else "",
                ]
            )
    head = ["", "s before", "s after", "speed-up", "MACs", "of promise", "busy", "rounded to 1, 16, 32", "time lost"]
    return markdown(head, rows)


def note(result: Mapping[str, Any], name: str) -> str:
    """The two parts that lost most time, their rates and all parts', what has no MACs, and what other widths give."""
    before, after = result["parts"][name], result["parts"]["after"]
    by_part = lost(before, after)
    lost_in = sorted((part for part in PARTS if by_part[part] > 0), key=by_part.__getitem__, reverse=True)[:2]
    words = [
        f"{part} {_percent(by_part[part] / sum(after['seconds'].values()))}{_rates(before, after, part)}"
        for part in lost_in
    ]
    words.append("all {:.0f} to {:.0f} GMAC/s".format(*map(_rate, (before, after))))
    words.append(
        f"no MACs: {_percent(before['share_without_macs'])} of time, after {_percent(after['share_without_macs'])}"
    )
    others = _rounded(result)
    best = max(others, key=others.__getitem__)
    words.append(f"fastest {best}, {others[best]:.2f} times")
    return "; ".join(words)


def lost(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    """By part: seconds of what the smaller model takes above its promise, of which they are the sum.

    before, after: "seconds" and "gmacs" by part. A part takes or saves time beside its MACs at the rate that the whole
    model had; it has lost what that is after, less what fell with all MACs of what it was. So it loses by a lower rate
    than before, and, where it is faster than the others, by a smaller share of MACs.
    """
    promised = sum(after["gmacs"].values()) / sum(before["gmacs"].values())
    rate = _rate(before)

    def beside(one: Mapping[str, Any], part: str) -> float:
        return float(one["seconds"][part] - one["gmacs"][part] / rate)

    return {part: beside(after, part) - promised * beside(before, part) for part in PARTS}


def _rate(one: Mapping[str, Any]) -> float:
    """Of all parts, GMAC a second."""
    return float(sum(one["gmacs"].values()) / sum(one["seconds"].values()))


def _rounded(result: Mapping[str, Any]) -> dict[str, float]:
    """How much faster a removal with widths of other multiples runs than one with multiples of 8."""
    ms = result["median_ms"]
    return {name: ms["after"] / ms[name] for name in ms if name.startswith("round to")}


def _rates(before: Mapping[str, Any], after: Mapping[str, Any], part: str) -> str:
    """GMAC a second, and the share of MACs."""
    if not after["gmacs"][part]:
        return ""
    rates = [one["gmacs"][part] / one["seconds"][part] for one in (before, after)]
    shares = [_percent(one["gmacs"][part] / sum(one["gmacs"].values())) for one in (before, after)]
    return f" ({rates[0]:.0f} to {rates[1]:.0f} GMAC/s, {shares[0]} to {shares[1]} of MACs)"


def _percent(share: float) -> str:
    return f"{round(100 * share)} %"


def parts(found: Sequence[Mapping[str, Any]]) -> str:
    """Share of time and share of MACs of every part, before and after."""
    rows = []
    for result in found:
        for name in (*_against(result), "after"):
            spent = result["parts"][name]
            shares = [
                " / ".join(_percent(spent[of][part] / sum(spent[of].values())) for of in ("seconds", "gmacs"))
                for part in PARTS
            ]
            rows.append(
                [f"{result['title']}, {name}", *shares, _percent(spent["share_without_macs"]), f"{_rate(spent):.0f}"]
            )
    return markdown(["share of time / of MACs", *PARTS, "time without MACs", "GMAC/s"], rows)


if __name__ == "__main__":
    try:
        kept = results(RESULTS / "families")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(*(table(kept) for table in (removal, speed, parts)), sep="\n\n")
