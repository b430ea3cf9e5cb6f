"""One function a published method: a complete configuration. RECIPES is a plain dict of them."""

from collections.abc import Callable

from diminuendo.recipes.dphubert import dphubert
from diminuendo.training.compress_config import CompressConfig

RECIPES: dict[str, Callable[[], CompressConfig]] = {"dphubert": dphubert}

__all__ = ["RECIPES", "dphubert"]
