"""The model card: README.md of an output directory, with the figures of the run."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diminuendo.training.pretrain import PretrainConfig
    from diminuendo.training.two_stages import CompressConfig


def compression_card(result: dict[str, Any], recipe: str, config: "CompressConfig", run_log: Path) -> str:
    """Markdown with front matter as the hub reads it."""
    params, macs = result["params"], result["macs_per_second"]
    last = run_log.read_text().splitlines()[-1] if run_log.is_file() else ""
    settings = "\n".join(f"| {name} | {value} |" for name, value in asdict(config).items())
    return f"""---
library_name: transformers
tags: [diminuendo, speech, compressed]
---
# A smaller speech model, made by diminuendo

| | original | this model | kept |
| --- | --- | --- | --- |
| parameters | {params["teacher"]:,} | {params["student"]:,} | {params["kept"]:.1%} |
| MACs per second of audio | {macs["teacher"]:,.0f} | {macs["student"]:,.0f} | {macs["kept"]:.1%} |

The model after removal equals the model whose gates were learned: relative error {result["removal_error"]:.1e},
the largest over all hidden states, on real audio. Expected kept fraction before selection:
{result["expected_before_selection"]:.4f}.

    import diminuendo
    model = diminuendo.load("this directory")

    from transformers import AutoModel            # without diminuendo installed
    model = AutoModel.from_pretrained("this directory", trust_remote_code=True)

Last line of the training log: `{last}`

## How it was made

Recipe `{recipe}`:

| setting | value |
| --- | --- |
{settings}
"""


def pretraining_card(name: str, result: dict[str, Any], config: "PretrainConfig") -> str:
    """Markdown with front matter as the hub reads it."""
    settings = "\n".join(f"| {name} | {value} |" for name, value in asdict(config).items())
    accuracies = "\n".join(f"| {stage} | {value:.1%} |" for stage, value in result["accuracy"].items())
    return f"""---
library_name: transformers
tags: [diminuendo, speech, self-supervised]
---
# {name}, pretrained by diminuendo

{result["params"]:,} parameters, trained on audio alone: its front end learned log-mel bands, then the encoder learned
to predict clusters of masked frames (HuBERT).

| stage | accuracy on masked frames |
| --- | --- |
{accuracies}

    from transformers import AutoModel
    model = AutoModel.from_pretrained("this directory")

| setting | value |
| --- | --- |
{settings}
"""
