"""Distillation alone, into a student of a fixed shape."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet

from diminuendo.data.batching import BatchSettings, TrainingBatches
from diminuendo.distillation.hidden import CosineForm, HiddenDistillation, default_layers
from diminuendo.export.huggingface import save
from diminuendo.families import Model
from diminuendo.profiling.count import count_parameters
from diminuendo.training.checkpoint import clear_on_full_disk
from diminuendo.training.loop import Group, Loop, LoopConfig, Stage, make_accelerator, warm_up_then_decay
from diminuendo.training.objective import DistillationObjective
from diminuendo.training.run import Run, fingerprint
from diminuendo.training.two_stages import Source


@dataclass(frozen=True)
class DistilConfig:
    """A complete configuration; the fields mean what they mean for a compression."""

    steps: int
    learning_rate: float
    seconds_per_batch: float = 60.0
    max_seconds: float = 15.0
    crop_to_shortest: bool = True
    accumulate: int = 1
    precision: str = "fp32"
    seed: int = 0
    cosine: CosineForm = "one_minus"
    weight_decay: float = 0.01
    warm_up: float = 0.1
    clip: float = 10.0


def distil(
    student: Model,
    source: Source,
    cuts: CutSet,
    out: Path,
    config: DistilConfig,
    *,
    loop: LoopConfig | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Trains `student`, in place, towards the hidden states of `source`'s model, and writes it to `out`.

    Student and teacher have one depth; the same layers are compared, through linear maps.
    """
    loop = replace(loop or LoopConfig(), precision=config.precision, accumulate=config.accumulate, clip=config.clip)
    teacher = source.model
    identity = {
        "command": "distil",
        "source": source.name,
        "model_fingerprint": fingerprint(teacher),
        "student_fingerprint": fingerprint(student),
        "config": asdict(config),
    }
    run, accelerator = Run(out, identity), make_accelerator(loop)
    run.open_on(accelerator, resume=resume, overwrite=overwrite)
    if run.result is not None:
        return run.result
    started = time.time()
    trainer = Loop(run, loop, accelerator)
    teacher.to(accelerator.device)
    torch.manual_seed(config.seed)
    layers = default_layers(teacher.config.num_hidden_layers)
    widths = student.config.hidden_size, teacher.config.hidden_size
    distillation = HiddenDistillation(layers, *widths, cosine=config.cosine)
    objective = DistillationObjective(student, teacher, source.extractor, distillation)
    schedule = warm_up_then_decay(config.steps, config.warm_up)
    weights = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    group = Group(weights, config.learning_rate, schedule, weight_decay=config.weight_decay)
    settings = BatchSettings(
        seconds_per_batch=config.seconds_per_batch,
        max_seconds=config.max_seconds,
        crop_to_shortest=config.crop_to_shortest,
        seed=config.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    batches = TrainingBatches(cuts, settings)
    try:
        trainer.run_stage(Stage("distil", config.steps, objective, [group]), batches)
    finally:
        batches.close()
    result = {"params": count_parameters(student), "steps": config.steps, "out": str(out)}
    if accelerator.is_main_process:
        with clear_on_full_disk(run.checkpoint):
            save(student.cpu(), source.extractor, out)
        run.finish(result | {"seconds": round(time.time() - started, 1)})
    accelerator.wait_for_everyone()
    return run.result or result
