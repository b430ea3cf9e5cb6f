"""How the teachers and the cells are made, and what is measured of them.

The Parakeet recogniser is the grid of small recognisers' (benchmarks/synergy); the wav2vec2-conformer one is made here.
"""

from pathlib import Path
from typing import Any

from benchmarks.conformer.cells import AFTER_REMOVAL, STEPS, Cell, Kind
from benchmarks.recognisers import QUIET, best_of_runs, errors_of, sizes, told
from benchmarks.synergy import make as synergy
from diminuendo.api import compress_to_result, finetune, pretrain
from diminuendo.recipes.conformer import conformer_l0

CONFIGURATION = "tiny-wav2vec2-conformer"
RECIPE = "conformer-l0"
# The clusters of a first iteration have to do, which leaves most of the time for words.
PRETRAINING: dict[str, Any] = {
    "steps": 1500,
    "seconds_per_batch": 15.0,
    "front_end": 0.25,
    "iteration_1": 0.75,
    "centred": True,
}
RECOGNITION = synergy.RECOGNITION | {"task": "ctc"}
# In several runs; the best of them and of their average is the teacher. Two were not enough (20 % of words wrong), so
# the third begins with the full rate again, with more voices.
BEGUN: dict[str, Any] = {"steps": 2600, "flat_start": 0.1, "augment_from": 0.3}
FINISHED: dict[str, Any] = {
    "steps": 900,
    "tokens": None,
    "augment_from": 0.0,
    "learning_rate": 5e-4,
    "head_learning_rate": 5e-4,
}
AGAIN: dict[str, Any] = FINISHED | {
    "steps": 3000,
    "seed": 1,
    "speeds": (0.8, 0.9, 1.0, 1.1, 1.25),
    "learning_rate": 1e-3,
    "head_learning_rate": 1e-3,
}
FINISHED_AGAIN: dict[str, Any] = AGAIN | {"steps": 1500, "seed": 2, "learning_rate": 5e-4, "head_learning_rate": 5e-4}
SECONDS_PER_BATCH = 15.0
# As the teachers heard it.
HEARD: dict[str, Any] = {key: RECOGNITION[key] for key in ("speeds", "augment_strength")} | {"augment_from": 0.0}
# In many steps Parakeet goes further from its teacher; its rate falls through removal, as the joint recipes have it.
RATE: dict[Kind, float] = {"parakeet": 1e-3, "wav2vec2-conformer": conformer_l0().learning_rate}
AFTER: dict[Kind, dict[str, Any]] = {  # removal, of L0
    "parakeet": {"one_schedule": True, "distil_warm_up": synergy.PRUNED["distil_warm_up"]},
    "wav2vec2-conformer": {"distil_learning_rate": conformer_l0().distil_learning_rate},
}


def pretrained(kind: Kind, unlabelled: Path, out: Path) -> dict[str, Any]:
    """The encoder of the teacher."""
    if kind == "parakeet":
        return synergy.pretrained("full", unlabelled, out)
    result = pretrain(CONFIGURATION, unlabelled, out, resume=True, loop=QUIET, **PRETRAINING)
    return {"settings": PRETRAINING, **told(result)}


def teacher(kind: Kind, encoder: Path, words: Path, out: Path) -> dict[str, Any]:
    """The uncompressed recogniser, taken as it is if it is there: by the grid of small recognisers, or kept."""
    if out.is_dir():
        return measured(out, words)
    if kind == "parakeet":
        return synergy.teacher("full", encoder, words, out)
    runs = {
        out.with_name(f"{out.name}-begun"): RECOGNITION | BEGUN,
        out.with_name(f"{out.name}-finished"): RECOGNITION | FINISHED,
        out.with_name(f"{out.name}-again"): RECOGNITION | AGAIN,
        out.with_name(f"{out.name}-finished-again"): RECOGNITION | FINISHED_AGAIN,
    }
    return {**best_of_runs(encoder, runs, words, out), **measured(out, words)}


def settings_of(cell: Cell) -> dict[str, Any]:
    """How a cell is trained."""
    rate, steps, after = RATE[cell.kind], STEPS[cell.kind], AFTER_REMOVAL[cell.kind]
    settings: dict[str, Any] = {
        "seconds_per_batch": SECONDS_PER_BATCH,
        **HEARD,
        "learning_rate": rate,
        "seed": cell.run_seed,
    }
    if cell.method == "whole":
        return settings | {"steps": steps, "head_learning_rate": rate}
    # What removes at once has one stage, whose rate is the whole one: like L0 and the whole recogniser it begins there.
    return settings | {
        "keep": cell.budget,
        "method": cell.method,
        "matching": cell.matching,
        "steps": steps - after,
        "distil_steps": after,
        **(AFTER[cell.kind] if cell.method == "l0" else {"distil_learning_rate": rate}),
    }


def cell(cell: Cell, taught_by: Path, words: Path, out: Path) -> dict[str, Any]:
    """One cell's recogniser, made in `out`, and what it can do."""
    settings = settings_of(cell)
    if cell.method == "whole":
        result = finetune(str(taught_by), words, out, resume=True, loop=QUIET, **settings)
    else:
        result = compress_to_result(str(taught_by), words, out, recipe=RECIPE, resume=True, loop=QUIET, **settings)
    return {"cell": cell.as_dict(), "settings": settings, **told(result), **measured(out, words)}


def measured(model: Path, words: Path) -> dict[str, Any]:
    """Sizes; word errors on test clips, and how many there are in each clip."""
    result, errors = errors_of(model, words, "test")
    return {**sizes(model), "wer": {**result, "errors": errors}}
