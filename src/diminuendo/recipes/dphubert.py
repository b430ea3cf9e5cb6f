"""DPHuBERT (Peng et al., Interspeech 2023, arXiv 2305.17651): joint distillation and pruning of an encoder."""

from diminuendo.training.compress_config import CompressConfig


def dphubert() -> CompressConfig:
    """A quarter of the parameters; rates, schedules and losses as published (differences: docs/papers.md).

    Published with 50,000 steps of 640 s of audio and 25,000 of the second stage, six hours on four A100. Here
    5,000 steps of 60 s; `--dry-run` says what that takes. As much audio as published, a batch at a time:
    `--steps 50000 --seconds-per-batch 40 --accumulate 16` on one process, or fewer on several.

        diminuendo compress facebook/hubert-base-ls960 DATA --recipe dphubert --out small/

    That run was not made here; what small models gave is in docs/results.md and docs/LOG.md.
    """
    return CompressConfig()
