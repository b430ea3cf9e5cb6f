"""The model card: README.md of an output directory, with the figures of the run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diminuendo.training.compress_config import LEARNED

_LEARNED = {
    "clusters": """its front end learned log-mel bands, then the encoder learned
to predict clusters of masked frames (HuBERT).""",
    "best_rq": """it learned to predict what a random projection and a random
codebook make of masked features (BEST-RQ).""",
}


def compression_card(
    result: Mapping[str, Any], recipe: str, config: Mapping[str, Any], run_log: Path, *, auto_class: str
) -> str:
    """Markdown with front matter as the hub reads it."""
    params, macs = result["params"], result["macs_per_second"]
    last = run_log.read_text().splitlines()[-1] if run_log.is_file() else ""
    return f"""---
library_name: transformers
tags: [diminuendo, speech, compressed]
---
# A smaller speech model, made by diminuendo

| | original | this model | kept |
| --- | --- | --- | --- |
| parameters | {params["teacher"]:,} | {params["student"]:,} | {params["kept"]:.1%} |
| MACs per second of audio | {macs["teacher"]:,.0f} | {macs["student"]:,.0f} | {macs["kept"]:.1%} |
{_latency(result)}{_removal(result)}
    import diminuendo
    model = diminuendo.load("this directory")

    from transformers import {auto_class}            # without diminuendo installed
    model = {auto_class}.from_pretrained("this directory", trust_remote_code=True)

Last line of the training log: `{last}`

## How it was made

Recipe `{recipe}`:

{_settings(config)}"""


def pretraining_card(name: str, result: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Markdown with front matter as the hub reads it."""
    accuracies = "\n".join(f"| {stage} | {value:.1%} |" for stage, value in result["accuracy"].items())
    return f"""---
library_name: transformers
tags: [diminuendo, speech, self-supervised]
---
# {name}, pretrained by diminuendo

{result["params"]:,} parameters, trained on audio alone: {_LEARNED[config["objective"]]}

| stage | accuracy on masked frames |
| --- | --- |
{accuracies}

    from transformers import AutoModel
    model = AutoModel.from_pretrained("this directory")

{_settings(config)}"""


def recogniser_card(result: Mapping[str, Any], config: Mapping[str, Any], *, auto_class: str) -> str:
    """Markdown with front matter as the hub reads it."""
    return f"""---
library_name: transformers
tags: [diminuendo, speech, automatic-speech-recognition]
---
# A recogniser, trained by diminuendo

{result["params"]:,} parameters, {result["tokens"]:,} labels, {result["task"]}; the last loss per label that was logged
is {result["loss"]:.3f}.

    diminuendo transcribe "this directory" audio.wav

    from transformers import {auto_class}
    model = {auto_class}.from_pretrained("this directory", trust_remote_code=True)

{_settings(config)}"""


def _latency(result: Mapping[str, Any]) -> str:
    if (latency := result.get("latency_ms")) is None:
        return ""
    before, after, promised = (f"{latency[key]:.1f}" for key in ("teacher", "student", "promised"))
    return f"""| latency, ms | {before} | {after} | {latency["kept"]:.1%} |

Latency is that of 10 s of audio, batch 1, {latency["device"]} (threads: {latency["threads"]}), on the machine that made
the model: medians of 20 runs in turn. Its budget promised {promised} ms, {latency["promised_kept"]:.1%}.
"""


def _removal(result: Mapping[str, Any]) -> str:
    if result["removal_error"] is None:
        return ""
    kept = result["expected_before_selection"]
    expected = f" Kept fraction that the learned gates expected before the selection met the budget:\n{kept:.4f}."
    return f"""
Removing what was selected equals shutting its gates: relative error {result["removal_error"]:.1e}, the largest over
all hidden states, on real audio.{expected if result["method"] in LEARNED else ""}
"""


def _settings(config: Mapping[str, Any]) -> str:
    rows = "".join(f"| {name} | {value} |\n" for name, value in config.items())
    return f"| setting | value |\n| --- | --- |\n{rows}"
