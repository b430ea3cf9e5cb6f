"""Distillation alone, into a student of a fixed shape."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet

from diminuendo.distillation.hidden import CosineForm, HiddenDistillation, default_layers
from diminuendo.export.huggingface import save
from diminuendo.families import Model, encoder_config, stream_width
from diminuendo.profiling.count import count_parameters
from diminuendo.training.config import LoopConfig, TrainingConfig
from diminuendo.training.kernels import choose_attention
from diminuendo.training.loop import Group, Loop, Stage, carry_out
from diminuendo.training.objective import DistillationObjective
from diminuendo.training.removing import Source
from diminuendo.training.run import Run, clips_of, defaults_of, fingerprint
from diminuendo.training.schedules import warm_up_then_decay


@dataclass(frozen=True, kw_only=True)
class DistilConfig(TrainingConfig):
    """A complete configuration; the fields mean what they mean for a compression."""

    learning_rate: float
    crop_to_shortest: bool = True
    cosine: CosineForm = "one_minus"
    warm_up: float = 0.1


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
    """Trains `student` towards the hidden states of `source`'s model, in place, and writes it to `out`.

    Student and teacher have one depth; the same layers are compared, through linear maps. The student's attention may
    become eager.
    """
    teacher = source.model
    identity = {
        "command": "distil",
        "source": source.name,
        "model_fingerprint": fingerprint(teacher),
        "student_fingerprint": fingerprint(student),
        **clips_of(cuts),
        "config": asdict(config),
    }
    layers = default_layers(encoder_config(teacher).num_hidden_layers)
    widths = stream_width(student), stream_width(teacher)

    def train(trainer: Loop) -> tuple[dict[str, Any], Callable[[], None]]:
        device = trainer.accelerator.device
        teacher.to(device)
        choose_attention(student, config, device)
        torch.manual_seed(config.seed)
        distillation = HiddenDistillation(layers, *widths, cosine=config.cosine)
        objective = DistillationObjective(student, teacher, source.extractor, distillation)
        schedule = warm_up_then_decay(config.steps, config.warm_up)
        weights = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        group = Group(weights, config.learning_rate, schedule, weight_decay=config.weight_decay)
        stage = Stage("distil", config.steps, objective, [group])
        skipped = trainer.run_stage(stage, cuts, crop_to_shortest=config.crop_to_shortest)
        sizes = {"params": count_parameters(student), "steps": config.steps}
        return {**sizes, "skipped": skipped, "out": str(out)}, lambda: save(student.cpu(), source.extractor, out)

    return carry_out(Run(out, identity, defaults_of(config)), config, loop, train, resume=resume, overwrite=overwrite)
