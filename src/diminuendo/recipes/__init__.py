"""One function a published method: a complete configuration. RECIPES is a plain dict of them."""

from collections.abc import Callable
from functools import partial

from diminuendo.recipes.conformer import conformer_l0
from diminuendo.recipes.dphubert import dphubert
from diminuendo.recipes.joint import agnostic, distil_only, joint, prune_only
from diminuendo.recipes.students import deep_thin, dphubert_fbank, shallow_wide
from diminuendo.training.compress_config import CompressConfig

RECIPES: dict[str, Callable[[], CompressConfig]] = {
    "dphubert": dphubert,
    "joint-l0": partial(joint, "l0"),
    "joint-lowrank": partial(joint, "lowrank"),
    "joint-l0-lowrank": partial(joint, "l0+lowrank"),
    "agnostic-l0": partial(agnostic, "l0"),
    "agnostic-lowrank": partial(agnostic, "lowrank"),
    "agnostic-l0-lowrank": partial(agnostic, "l0+lowrank"),
    "prune-only-l0": partial(prune_only, "l0"),
    "prune-only-lowrank": partial(prune_only, "lowrank"),
    "prune-only-l0-lowrank": partial(prune_only, "l0+lowrank"),
    "distil-only": distil_only,
    "conformer-l0": conformer_l0,
    "dphubert-fbank": dphubert_fbank,
    "deep-thin": deep_thin,
    "shallow-wide": shallow_wide,
}

__all__ = [
    "RECIPES",
    "agnostic",
    "conformer_l0",
    "deep_thin",
    "distil_only",
    "dphubert",
    "dphubert_fbank",
    "joint",
    "prune_only",
    "shallow_wide",
]
