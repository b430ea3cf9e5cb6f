"""Input distillation, first of two stages: filter banks learn what the convolutions on the waveform gave.

Wang et al., arXiv 2210.15631: by L1, the front end alone; then everything learns everything. Ours: by L1 after the
layer norm that reads both. What convolutions give is far from 0 and differs by channel (in a tiny HuBERT 44 in the
mean, up to 1,600), where a fresh front end would hardly come in as many steps; behind the norm scale does not matter.
"""

import copy
from dataclasses import replace

import torch
from jaxtyping import Int
from lhotse import CutSet
from torch import Tensor, nn
from torch.nn import functional as F

from diminuendo.distillation.hidden import valid_frames
from diminuendo.families import family_of, model_inputs
from diminuendo.families.filter_bank_input import with_filter_banks
from diminuendo.families.filter_banks import filter_bank_extractor, filter_bank_frames
from diminuendo.modules.filter_bank import FilterBankFrontEnd
from diminuendo.tasks.selfsupervised import fit_scale
from diminuendo.training.compress_config import CompressConfig
from diminuendo.training.heard import some_batches
from diminuendo.training.hearing import Hearing
from diminuendo.training.loop import Group, Loop, Stage
from diminuendo.training.removing import Source
from diminuendo.training.schedules import warm_up_then_decay

NAME = "front_end"
ORDER = 1_000_003  # of its batches, apart from those of other stages
SCALE_SECONDS = 600.0  # of audio, from which the bands' means and deviations are


def hearing_filter_banks(source: Source, seed: int, *, plain: bool = False) -> Source:
    """The model with a fresh front end, and an extractor of filter banks. UserError if it reads features already."""
    model = with_filter_banks(source.model, plain=plain, seed=seed)
    return replace(source, model=model, extractor=filter_bank_extractor())


class FrontEndDistillation(nn.Module):
    """L1 between what two front ends give, behind the teacher's layer norm that reads it, over a clip's own frames."""

    def __init__(self, student: Source, teacher: Source, hearing: Hearing) -> None:
        super().__init__()
        self.student = family_of(student.model).encoder(student.model).feature_extractor
        self._heard_by = (student, hearing)
        encoder = family_of(teacher.model).encoder(teacher.model)
        norm = copy.deepcopy(getattr(encoder.feature_projection, "layer_norm", nn.Identity())).requires_grad_(False)
        self._teacher = (encoder.feature_extractor, norm, teacher, encoder)  # a tuple: neither saved nor trained

    def forward(self, waveforms: Tensor, lengths: Int[Tensor, " batch"], step: int, draw: int) -> dict[str, Tensor]:
        """`loss` for clips [batch, samples]."""
        front, norm, teacher, encoder = self._teacher
        inputs = model_inputs(teacher.extractor, waveforms, lengths)
        with torch.no_grad():
            target = front(inputs["input_values"]).transpose(1, 2)
        (student, hearing), given = self._heard_by, (waveforms, lengths, step, draw)
        own = self.student(hearing.inputs(student.model, student.extractor, *given)["input_features"]).transpose(1, 2)
        frames = min(own.shape[1], target.shape[1])
        valid = valid_frames(family_of(encoder).frame_lengths(encoder, lengths), frames)
        return {"loss": F.l1_loss(norm(own[:, :frames][valid]), norm(target[:, :frames][valid]))}


def learn_front_end(trainer: Loop, source: Source, teacher: Source, cuts: CutSet, config: CompressConfig) -> str:
    """Trains the front end of `source`'s model in place, and says which clips were skipped.

    Nothing if the run is further: then a checkpoint has it.
    """
    if trainer.resumed_stage not in (None, NAME):
        return ""
    teacher.model.to(trainer.accelerator.device)
    front = family_of(source.model).encoder(source.model).feature_extractor.to(trainer.accelerator.device)
    front.mean.data, front.deviation.data = _scale(trainer, source, front, cuts, config)
    front.requires_grad_(True)
    objective = FrontEndDistillation(source, teacher, Hearing(seed=config.seed, level=config.level))
    steps = config.front_end_steps
    schedule = warm_up_then_decay(steps, config.warm_up)
    group = Group([*front.parameters()], config.input_learning_rate, schedule, weight_decay=config.weight_decay)
    stage = Stage(NAME, steps, objective, [group], offset=-steps, rate="input_learning_rate")
    return trainer.run_stage(stage, cuts, crop_to_shortest=config.crop_to_shortest, order=ORDER)


def _scale(
    trainer: Loop, source: Source, front: FilterBankFrontEnd, cuts: CutSet, config: CompressConfig
) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every band as it is heard, over all of some audio."""
    found = []
    for batch in some_batches(cuts, config, trainer.skipped, SCALE_SECONDS, offset=ORDER):
        bands = front.heard(model_inputs(source.extractor, batch.waveforms, batch.lengths)["input_features"])
        found.append(bands[valid_frames(filter_bank_frames(batch.lengths).clamp(min=0), bands.shape[1])])
    scale, device = fit_scale(torch.cat(found)), trainer.accelerator.device
    return scale.mean.to(device), scale.deviation.to(device)
