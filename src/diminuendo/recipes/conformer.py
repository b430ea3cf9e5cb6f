"""Structured pruning of a Conformer recogniser (Jiang et al., Interspeech 2023, arXiv 2305.19549)."""

from diminuendo.training.compress_config import CompressConfig


def conformer_l0() -> CompressConfig:
    """Half of a recogniser's parameters: sublayers and what is inside of them by gates, with layer-wise distillation.

    Published are the masks, the distillation and the half; rates and steps are ours. Baselines with the same steps are
    `--method random`, `magnitude`, `taylor` and `layerdrop`.
    """
    return CompressConfig(
        keep="params=0.5",
        method="l0",
        task="own",
        max_seconds=20.0,
        learning_rate=2e-4,
        distil_learning_rate=1e-4,
        warm_up=0.1,
    )
