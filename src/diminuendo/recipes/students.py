"""Students made by hand, and filter banks (Wang et al., arXiv 2210.15631); by states alone, if no task is given.

Published are shapes, maps and losses. Rates are ours, for small models and short runs.
"""

from dataclasses import replace

from diminuendo.recipes.dphubert import dphubert
from diminuendo.training.compress_config import CompressConfig


def deep_thin() -> CompressConfig:
    """As deep as the teacher, with fresh weights: each layer learns the teacher's, through a map of its own."""
    return CompressConfig(
        method="student",
        student="deep-thin",
        maps="layer",
        cosine="log_sigmoid",
        distil_learning_rate=1e-3,
        distil_warm_up=0.1,
    )


def shallow_wide() -> CompressConfig:
    """The teacher's first two layers, from whose last state layers at thirds of its depth are learned."""
    return CompressConfig(
        method="student",
        student="shallow-wide",
        maps="last",
        cosine="log_sigmoid",
        distil_learning_rate=5e-4,
        distil_warm_up=0.1,
    )


def dphubert_fbank() -> CompressConfig:
    """Filter banks in the place of the waveform, and the rest pruned as DPHuBERT does it: nobody has published that."""
    return replace(dphubert(), input="fbank")
