"""Students made by hand (Wang et al., arXiv 2210.15631), by the encoder's states alone; give a task to have it too.

Published are shapes, maps and losses. Rates are ours, for small models and short runs.
"""

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
