"""How the encoders, the teachers and the cells are made, and what is measured of them."""

from pathlib import Path
from typing import Any

import torch

from benchmarks.recognisers import QUIET, best_of_runs, errors_of, sizes, spent, told
from benchmarks.synergy.cells import AFTER_REMOVAL, AGNOSTIC, AGNOSTIC_AFTER_REMOVAL, STEPS, Cell, Mode
from diminuendo.api import compress_to_result, finetune, pretrain, source_of
from diminuendo.export.huggingface import save
from diminuendo.profiling.count import count_parameters
from diminuendo.training.finetune_config import FinetuneConfig
from diminuendo.training.own_prediction import encoder_of
from diminuendo.training.recognition_config import RecognitionTask

CONFIGURATION: dict[Mode, str] = {
    "full": "tiny-parakeet",
    "streaming": "tiny-nemotron",
    "sentences": "tiny-parakeet-40ms",
}
LOOKAHEADS = (0, 1, 6, 13)  # frames of 80 ms
FRAME_MS = 80
PRETRAINING: dict[str, Any] = {
    "steps": 4000,
    "seconds_per_batch": 20.0,
    "learning_rate": 1e-3,
    # The next word cannot be told from those before, so what is masked has to be told from what is left of its word:
    # spans of 400 ms, as published, were not learned in 1,300 steps.
    "span_seconds": 0.16,
    "masked": 0.4,
}
RECOGNITION: dict[str, Any] = {
    "task": "ctc+rnnt",
    "tokens": "words",
    "predictor_width": 128,
    "seconds_per_batch": 15.0,
    "speeds": (0.9, 1.0, 1.1),
    "augment_strength": 0.4,
    "learning_rate": 1e-3,
    "head_learning_rate": 2e-3,
}
# What one is told beside. The "words" of sentences are phones.
HEARD: dict[Mode, dict[str, Any]] = {"full": {}, "streaming": {"lookaheads": LOOKAHEADS}, "sentences": {}}
# In several runs, the later ones at a lower rate with more voices and larger masks; their weights are then averaged.
TEACHER: dict[str, Any] = {"steps": 8000, "flat_start": 0.1, "augment_from": 0.3}
FINISHED: dict[str, Any] = {
    "steps": 3000,
    "augment_from": 0.0,
    "augment_strength": 0.7,
    "speeds": (0.8, 0.9, 1.0, 1.1, 1.25),
    "learning_rate": 5e-4,
    "head_learning_rate": 5e-4,
}
# The tasks of the later runs. A run begins its CTC head beside anew, at a loss of 31 a label: the last ones have none.
FINISHING: dict[Mode, tuple[RecognitionTask, ...]] = {
    "full": ("ctc+rnnt",),
    "sentences": ("ctc+rnnt",),
    "streaming": ("ctc+rnnt", "ctc+rnnt", "rnnt", "rnnt"),
}
# Of a run to recognition: so long frames are learned before texts are.
FLAT_START, AUGMENT_FROM = 0.2, 0.4
ALONE: dict[str, Any] = {"hidden_weight": 0.0, "posterior_weight": 0.0}
# As the recipes that only prune have it: without a teacher a new head has to learn what it needs before it is gone.
SLOWLY: dict[str, Any] = {"ramp": 1.0}
# What is trained has one rise and one fall of its rate, removal or not: a second rise unlearns what was learned, and a
# thin student has none (docs/LOG.md).
THIN: dict[str, Any] = {"distil_learning_rate": RECOGNITION["learning_rate"], "distil_warm_up": 0.1}
PRUNED: dict[str, Any] = {"one_schedule": True, "distil_warm_up": 0.025}
# Most matrices are left with few ranks, and by eights many a rank would go that is open and come back that is shut.
RANKS: dict[str, Any] = {"round_to": 4}


def pretrained(mode: Mode, unlabelled: Path, out: Path) -> dict[str, Any]:
    result = pretrain(CONFIGURATION[mode], unlabelled, out, resume=True, loop=QUIET, **PRETRAINING)
    return {"settings": PRETRAINING, **told(result)}


def teacher(mode: Mode, encoder: Path, words: Path, out: Path) -> dict[str, Any]:
    """The uncompressed recogniser: the encoder, and a head on it, as long as it takes."""
    runs = {out.with_name(f"{out.name}-begun"): RECOGNITION | HEARD[mode] | TEACHER}
    for number, task in enumerate(FINISHING[mode]):
        path = out.with_name(f"{out.name}-finished" + (f"-{number + 1}" if number else ""))
        runs[path] = RECOGNITION | HEARD[mode] | {"tokens": None} | FINISHED | {"task": task, "seed": number}
    return {**best_of_runs(encoder, runs, words, out), **measured(mode, out, words)}


def cell(cell: Cell, encoder: Path, taught_by: Path, words: Path, out: Path) -> dict[str, Any]:
    """One cell's recogniser, made in `out`, and what it can do."""
    found = (_agnostic if cell.agnostic else _joint)(cell, encoder, taught_by, words, out)
    return {"cell": cell.as_dict(), **found, **measured(cell.mode, out / "model", words)}


def settings_of(cell: Cell) -> dict[str, Any]:
    """How a cell is trained: of one run its settings, of two those of compression and recognition."""
    recognition = RECOGNITION | HEARD[cell.mode] | {"seed": cell.run_seed}
    recognition |= {"flat_start": FLAT_START, "augment_from": AUGMENT_FROM}
    pruned = PRUNED | (RANKS if "lowrank" in cell.method else {})
    if cell.agnostic:
        compression = {key: RECOGNITION[key] for key in ("seconds_per_batch", "speeds", "learning_rate")} | {
            "seed": cell.run_seed,
            "steps": AGNOSTIC - AGNOSTIC_AFTER_REMOVAL,
            "distil_steps": AGNOSTIC_AFTER_REMOVAL,
            **pruned,
            "objective": "distillation" if cell.distilled else "masked_prediction",
            "crop_to_shortest": False,
            "max_seconds": FinetuneConfig.max_seconds,
        }
        if cell.distilled:  # its own prediction hears as it was pretrained
            compression |= HEARD[cell.mode]
        return {"compression": compression, "recognition": recognition | {"steps": STEPS - AGNOSTIC}}
    if cell.from_teacher:  # which can recognise already
        recognition |= {"task": "own", "tokens": None, "flat_start": 0.0, "augment_from": 0.0}
    weights = {} if cell.distilled else ALONE
    if not cell.distilled and not cell.from_teacher and cell.method != "thin":
        weights = weights | SLOWLY
    rates = THIN if cell.method == "thin" else pruned
    return recognition | weights | rates | {"steps": STEPS - AFTER_REMOVAL, "distil_steps": AFTER_REMOVAL}


def _joint(cell: Cell, encoder: Path, taught_by: Path, words: Path, out: Path) -> dict[str, Any]:
    """In one run, by the uncompressed recogniser's hidden states and posteriors, or by the encoder's hidden states."""
    recipe, settings = recipe_of(cell), settings_of(cell)
    start = taught_by if cell.from_teacher else untrained(encoder, out / "encoder") if cell.fresh else encoder
    result = compress_to_result(
        str(start),
        words,
        out / "model",
        recipe=recipe,
        teacher=str(taught_by) if cell.taught else None,
        keep={"params": cell.keep},
        resume=True,
        loop=QUIET,
        **settings,
    )
    return {"settings": settings, "recipe": recipe, **told(result)}


def untrained(encoder: Path, out: Path) -> Path:
    """An encoder of the same configuration with fresh weights, the same whenever it is made."""
    if not out.exists():
        source, beside = source_of(encoder), out.with_name(f"{out.name}-begun")
        torch.manual_seed(0)
        save(encoder_of(source.model.config), source.extractor, beside)
        beside.rename(out)
    return out


def recipe_of(cell: Cell) -> str:
    """Of an agnostic cell that of its first run."""
    if cell.method == "thin":
        return "distil-only"
    return ("agnostic-" if cell.agnostic else "joint-") + cell.method.replace("+", "-")


def encoder_budget(cell: Cell, whole: int, encoder: int) -> str:
    """What of an encoder's parameters an agnostic cell keeps, so that with its head it has its part of the `whole`."""
    return f"params={(cell.keep * whole - (whole - encoder)) / 1e3:.3f}k"


def _agnostic(cell: Cell, encoder: Path, taught_by: Path, words: Path, out: Path) -> dict[str, Any]:
    """The encoder first, by its own hidden states or by what it was pretrained with; then a recogniser of it.

    The encoder becomes so small that, its head included, the recogniser is as large as one that is made in one run.
    """
    whole, beside = (count_parameters(source_of(path).model) for path in (taught_by, encoder))
    recipe, settings = recipe_of(cell), settings_of(cell)
    smaller = compress_to_result(
        str(encoder),
        words,
        out / "encoder",
        recipe=recipe,
        keep=encoder_budget(cell, whole, beside),
        resume=True,
        loop=QUIET,
        **settings["compression"],
    )
    result = finetune(str(out / "encoder"), words, out / "model", resume=True, loop=QUIET, **settings["recognition"])
    return {"settings": settings, "recipe": recipe, **told(smaller), **spent(smaller, result)}


def measured(mode: Mode, model: Path, words: Path) -> dict[str, Any]:
    """Sizes; word errors on test clips, of a streaming recogniser with every lookahead; its errors clip by clip."""
    found = sizes(model)
    found["dev_wer"] = errors_of(model, words, "dev")[0]["wer"]  # what settings are chosen by
    for frames in LOOKAHEADS if mode == "streaming" else (None,):
        result, errors = errors_of(model, words, "test", frames)
        found["wer" if frames is None else f"wer_{FRAME_MS * frames}_ms"] = {**result, "errors": errors}
    return found
