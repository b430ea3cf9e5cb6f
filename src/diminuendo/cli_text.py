"""What the commands print for people; `--json` prints the same results as they are."""

import shutil
import sys
from typing import Any

from rich.cells import cell_len


def compress_text(result: dict[str, Any]) -> str:
    params, macs = result["params"], result["macs_per_second"]
    return "\n".join(
        [
            f"parameters      {params['teacher']:>14,} -> {params['student']:>14,}   {params['kept']:.1%} kept",
            f"MACs per second {macs['teacher']:>14,.0f} -> {macs['student']:>14,.0f}   {macs['kept']:.1%} kept",
            *_latency_lines(result),
            *([] if result["removal_error"] is None else [f"removed equals gated to {result['removal_error']:.1e}"]),
            f"{result['out']}",
        ]
    )


def _latency_lines(result: dict[str, Any]) -> list[str]:
    if (latency := result.get("latency_ms")) is None:
        return []
    return [
        f"latency, ms     {latency['teacher']:>14,.1f} -> {latency['student']:>14,.1f}   {latency['kept']:.1%} kept, "
        f"promised {latency['promised_kept']:.1%} ({latency['device']}, threads: {latency['threads']})"
    ]


def dry_run_text(result: dict[str, Any]) -> str:
    asked, total = (_amount(result, key) for key in ("asked", "total"))
    if (student := result.get("student")) is None:
        least = _amount(result, "smallest_possible")
        reached = f"the smallest possible is {least} ({result['smallest_possible_kept']:.1%})"
    else:
        begun = ", ".join(map(str, student["begun_as_layers"]))
        reached = "{layers} layers, {width} wide, {heads} heads, {ffn} neurons, ".format(**student)
        reached += f"begun as the teacher's layers {begun}" if begun else "with fresh layers"
    return "\n".join(
        [
            f"budget {result['budget']}: {asked} of {total}; {reached}",
            f"about {result['estimated_seconds']:,.0f} s and {result['estimated_memory_mb']:,} MB "
            f"({result['seconds_per_step']:.2f} s for the first step)",
        ]
    )


def _amount(result: dict[str, Any], key: str) -> str:
    return f"{result[key]:,.1f} ms" if result["budget"].strip().startswith("latency") else f"{result[key]:,.0f}"


def students_text(result: dict[str, Any]) -> str:
    head = (
        f"{'--student':<14}{'layers':>7}{'width':>6}{'heads':>6}{'ffn':>6}{'parameters':>13}{'M MACs/s':>10}{'ms':>8}"
    )
    lines = [f"{head}  copied from the teacher"]
    for row in result["students"]:
        if "error" in row:
            lines.append(f"{row['student']:<14}{row['error']}")
            continue
        copied = "" if row["copied"] is None else f"{row['copied']:.0%}"
        if row["begun_as_layers"]:
            copied += f", layers {', '.join(map(str, row['begun_as_layers']))}"
        lines.append(
            f"{row['student'] or '(teacher)':<14}{row['layers']:>7}{row['width']:>6}{row['heads']:>6}{row['ffn']:>6}"
            f"{row['params']:>13,}{row['macs_per_second'] / 1e6:>10.1f}{row['latency_ms']:>8.1f}  {copied}"
        )
    return "\n".join(lines)


def pretrain_text(result: dict[str, Any]) -> str:
    return f"{result['params']:,} parameters, accuracies {result['accuracy']}\n{result['out']}"


def pretrain_dry_run_text(result: dict[str, Any]) -> str:
    seconds, memory = result["estimated_seconds"], result["estimated_memory_mb"]
    return f"{result['params']:,} parameters, {result['steps']} steps\nabout {seconds:,.0f} s and {memory:,} MB"


def finetune_text(result: dict[str, Any]) -> str:
    loss = "" if result["loss"] is None else f", loss {result['loss']:.3f} per label"
    return f"{result['params']:,} parameters, {result['task']}, {result['tokens']:,} labels{loss}\n{result['out']}"


def finetune_dry_run_text(result: dict[str, Any]) -> str:
    return (
        f"{result['params']:,} parameters, {result['task']}, {result['tokens']:,} labels\n"
        f"about {result['estimated_seconds']:,.0f} s and {result['estimated_memory_mb']:,} MB "
        f"({result['seconds_per_step']:.2f} s a step)"
    )


def evaluate_text(result: dict[str, Any]) -> str:
    if "lookaheads" in result:
        return "\n".join(f"{ms} ms: {evaluate_text(one)}" for ms, one in result["lookaheads"].items())
    if "accuracy" in result:
        accuracy, low, high = (f"{result[key]:.1%}" for key in ("accuracy", "low", "high"))
        return f"{result['task']} accuracy {accuracy} ({low} to {high}), {result['test_clips']:,} clips"
    lines = [
        f"WER {result['wer']:.2%}{_interval(result['wer_low'], result['wer_high'], 'clips')}"
        f"{_interval(result['speaker_low'], result['speaker_high'], 'speakers')}",
        f"CER {result['cer']:.2%}{_interval(result['cer_low'], result['cer_high'], 'clips')}"
        f"{_interval(result['speaker_cer_low'], result['speaker_cer_high'], 'speakers')}",
        f"{result['words']:,} words in {result['clips']:,} clips, {result['seconds']:,.0f} s: "
        f"{result['substitutions']:,} substituted, {result['insertions']:,} inserted, {result['deletions']:,} deleted",
    ]
    if (other := result["second"]) is not None:
        by_clip = _interval(other["low"], other["high"], "clips")
        by_speaker = _interval(other["speaker_low"], other["speaker_high"], "speakers")
        lines.append(f"the other: WER {other['wer']:.2%}, difference {other['difference']:+.2%}{by_clip}{by_speaker}")
    return "\n".join(lines)


def _interval(low: float | None, high: float | None, resampled: str) -> str:
    return "" if low is None or high is None else f" ({low:.2%} to {high:.2%} by {resampled})"


def transcripts_text(result: dict[str, Any]) -> str:
    lines = []
    for one in result["transcripts"]:
        if "error" in one:
            continue
        lines.append(f"{one['audio']}: {one['text']}")
        lines += [f"    {score:.2f} {text}" for text, score in one["others"]]
        if (cost := one.get("streaming")) is not None:
            lines.append(
                f"    latency {cost['algorithmic_latency_ms']:.1f} ms (lookahead {cost['lookahead_ms']:g} ms, audio in "
                f"chunks of {cost['chunk_ms']:g} ms) and computing: {cost['compute_ms']['p50']:.1f} ms median, "
                f"{cost['compute_ms']['p95']:.1f} ms p95; real-time factor {cost['real_time_factor']:.4f}"
            )
    return "\n".join(lines)


def print_heard(audio: str, heard: Any) -> None:
    """What a stream has heard of a file so far: on a terminal in a line that is written anew, elsewhere in one each."""
    now, terminal = f"{audio} {heard.seconds:.2f} s  ", sys.stderr.isatty()
    if not terminal:
        print(now + heard.text, file=sys.stderr)
        return
    room = max(0, shutil.get_terminal_size().columns - 1 - cell_len(now))
    text = heard.text[-room:] if room else ""
    while cell_len(text) > room:  # the end is what is new
        text = text[1:]
    print(f"\r\x1b[K{now}{text}", end="\n" if heard.final else "", file=sys.stderr, flush=True)


def profile_text(result: dict[str, Any]) -> str:
    latency = result["latency_ms"]
    return "\n".join(
        [
            f"parameters        {result['params']:,} ({result['bytes'] / 1e6:,.1f} MB)",
            f"MACs per second   {result['macs_per_second']:,.0f}",
            f"latency           {latency['p50']:.1f} ms median, {latency['p95']:.1f} ms p95 "
            f"({result['seconds']:g} s of audio, {result['threads']} threads)",
            f"features          {result['features_ms']:.1f} ms median, before the model",
            f"real-time factor  {result['real_time_factor']:.4f}",
            f"peak memory       {result['peak_memory_mb']:,.0f} MB",
        ]
    )


def sensitivity_text(result: dict[str, Any]) -> str:
    rows = [("axis", "kept", "params freed", "MACs freed", "last state", "largest, state")]
    for row in result["rows"]:
        rows.append(
            (
                row["axis"],
                f"{row['kept']:,} / {row['members']:,}",
                f"{row['params_freed']:.2%}",
                f"{row['macs_freed']:.2%}",
                f"{row['last']:.3f}",
                f"{row['largest']:.3f}, {row['changes'].index(row['largest']):2}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{result['audio_seconds']:.0f} s of audio, {result['states']} hidden states; relative change of the last one "
        "and of the one that moves most when one axis is cut",
        "",
        *("  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]) for name, *cells in rows),
    ]
    return "\n".join([*lines, *([f"\n{result['out']}"] if "out" in result else [])])
