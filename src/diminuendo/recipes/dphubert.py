"""DPHuBERT (Peng et al., Interspeech 2023, arXiv 2305.17651): joint distillation and pruning of an encoder."""

from diminuendo.training.two_stages import CompressConfig


def dphubert() -> CompressConfig:
    """A quarter of the parameters; rates, schedules and losses as published (differences: docs/papers.md).

    Published with 50,000 steps of 640 s of audio and 25,000 of the second stage, six hours on four A100. Here
    5,000 steps of 60 s; `--dry-run` says what that takes, `--steps 50000 --seconds-per-batch 640` is the published run.

        diminuendo compress facebook/hubert-base-ls960 DATA --recipe dphubert --out small/

    That run was not made here. Seen, on small models with learning rates of 1e-3 and 5e-4 (2 CPU cores, 2026-11-21,
    docs/LOG.md): a tiny HuBERT keeps 80.5 of 81.0 % keyword accuracy at a quarter of its parameters.
    """
    return CompressConfig()
