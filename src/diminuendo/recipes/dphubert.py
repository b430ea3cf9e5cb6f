"""DPHuBERT (Peng et al., Interspeech 2023, arXiv 2305.17651): joint distillation and pruning of an encoder."""

from diminuendo.training.two_stages import CompressConfig


def dphubert() -> CompressConfig:
    """A quarter of the parameters; rates, schedules and losses as published (differences: docs/papers.md).

    Published with 50,000 steps of 640 s of audio and 25,000 of the second stage, six hours on four A100. Here the
    steps are what a laptop or one GPU does overnight; `--steps 50000 --seconds-per-batch 640` is the published run.

        diminuendo compress facebook/hubert-base-ls960 DATA --recipe dphubert --out small/
    """
    return CompressConfig()
