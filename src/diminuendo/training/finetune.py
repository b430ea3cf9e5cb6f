"""A recogniser from an encoder, or from another recogniser, and labelled audio."""

import copy
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet

from diminuendo.data.audio import Skipped
from diminuendo.data.batching import TrainingBatches, look_at_one
from diminuendo.errors import UserError
from diminuendo.export.huggingface import save
from diminuendo.families import Model, family_of
from diminuendo.profiling.count import count_parameters
from diminuendo.profiling.latency import peak_memory_mb
from diminuendo.training.card import recogniser_card
from diminuendo.training.config import LoopConfig
from diminuendo.training.device import make_accelerator
from diminuendo.training.finetune_config import FinetuneConfig
from diminuendo.training.hearing import hearing_of
from diminuendo.training.kernels import choose_attention, convolution_chosen
from diminuendo.training.labelled import LabelledClips
from diminuendo.training.loop import Group, Loop, Stage, carry_out, make_optimizer
from diminuendo.training.progress import WORTH_ESTIMATING, duration_text
from diminuendo.training.recogniser import Pupil, pupil_of
from diminuendo.training.recognition import RecognitionObjective
from diminuendo.training.removing import Source
from diminuendo.training.run import Run, clips_of, defaults_of, fingerprint
from diminuendo.training.schedules import warm_up_then_decay

log = logging.getLogger(__name__)

# Batches, before a step is timed: clips' lengths differ, and with them what is padded.
_LOOKED_AT = 5
# Of transformers' training mode: whole layers that go at random, and masks from another generator than torch's.
_OFF = ("layerdrop", "mask_time_prob", "mask_feature_prob")


@dataclass(frozen=True)
class _Job:
    """A fine-tuning whose input has been checked."""

    source: Source
    pupil: Pupil
    clips: LabelledClips
    config: FinetuneConfig

    def stage(self, model: Model, device: torch.device) -> Stage:
        """What is trained: the pupil's model or a copy of it, with all else that is random drawn from the seed."""
        config = self.config
        choose_attention(model, config, device)
        torch.manual_seed(config.seed)
        weight = config.ctc_weight if self.pupil.ctc_beside else 0.0
        hearing = hearing_of(config, model)
        objective = RecognitionObjective(model, self.source.extractor, hearing, ctc_weight=weight).to(device)
        return Stage("recognition", config.steps, objective, _groups(objective, config), texts=self.clips.texts)


def finetune(
    source: Source,
    cuts: CutSet,
    out: Path,
    config: FinetuneConfig,
    *,
    loop: LoopConfig | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Trains a recogniser on the texts of clips and writes it, with its tokenizer, to `out`; gives the run's result.

    The result has `params`, `task`, `tokens` (how many labels), `loss` (the last logged), `skipped`, `left_out` and
    `out`; it is kept as result.json. Raises UserError for clips without text or texts that cannot be written, for a
    task that the model cannot do, lookaheads for a model that does not stream, and a directory that holds something
    else.
    """
    if source.name and Path(source.name).resolve() == out.resolve():
        raise UserError(f"--out {out} is MODEL's own directory; give another")
    job = _checked(source, cuts, config)
    config, pupil, model = job.config, job.pupil, job.pupil.model
    run = Run(out, _identity(source, cuts, config, pupil), defaults_of(config))

    def train(trainer: Loop) -> tuple[dict[str, Any], Callable[[], None]]:
        device = trainer.accelerator.device
        if trainer.resumed_stage is None and config.steps >= WORTH_ESTIMATING and trainer.accelerator.is_main_process:
            log.info("%s", _sentence(_measured(job, device), config))
        stage = job.stage(model, device)
        with _layers_stay(model):
            skipped = trainer.run_stage(stage, job.clips.cuts, crop_to_shortest=False)
        result = {
            "params": count_parameters(model),
            "task": pupil.task,
            "new_head": pupil.new,
            "tokens": pupil.tokens.size - 1,
            "loss": run.last_logged("loss"),
            "steps": config.steps,
            "skipped": skipped,
            "left_out": job.clips.left_out,
            "out": str(out),
        }

        def write() -> None:
            architecture = family_of(model).architecture_of(model)
            assert architecture is not None
            card = recogniser_card(result, asdict(config), auto_class=architecture.auto_class)
            save(model.cpu().eval(), source.extractor, out, card=card, tokenizer=pupil.tokens.tokenizer)

        return result, write

    return carry_out(run, config, loop, train, resume=resume, overwrite=overwrite)


def dry_run(source: Source, cuts: CutSet, config: FinetuneConfig, *, loop: LoopConfig | None = None) -> dict[str, Any]:
    """From one measured step the time and memory that a fine-tuning would take; the model stays as it is.

    Beside `seconds_per_step`, `estimated_seconds` and `estimated_memory_mb` there are `params`, `task`, `tokens` and
    `left_out` as in the result, and `clips` and `clip_seconds`, of what is not left out. UserError as of `finetune`.
    """
    job = _checked(source, cuts, config)
    measured = _measured(job, make_accelerator(config.precision, (loop or LoopConfig()).device).device)
    log.info("%s", _sentence(measured, config))
    return {
        "params": count_parameters(job.pupil.model),
        "task": job.pupil.task,
        "tokens": job.pupil.tokens.size - 1,
        "left_out": job.clips.left_out,
        **clips_of(job.clips.cuts),
        **measured,
    }


def _checked(source: Source, cuts: CutSet, config: FinetuneConfig) -> _Job:
    pupil = pupil_of(source, cuts, config)
    config = replace(config, predictor_width=pupil.predictor_width)
    clips = LabelledClips(cuts, pupil, config)
    look_at_one(clips.cuts, config.batch_settings(crop_to_shortest=False))  # unusable audio is found before writing
    return _Job(source, pupil, clips, config)


def _measured(job: _Job, device: torch.device) -> dict[str, Any]:
    """Times steps of a copy of the model, so that the run is the same with and without them."""
    model = job.pupil.model
    step = _time_a_step(job, copy.deepcopy(model), device)
    memory = peak_memory_mb(device)
    if model.device.type == device.type:
        memory -= 4 * count_parameters(model) / 1e6  # the run has no copy
    return {
        "seconds_per_step": round(step, 4),
        "estimated_seconds": round(step * job.config.steps, 1),
        "estimated_memory_mb": round(memory),
    }


def _time_a_step(job: _Job, model: Model, device: torch.device) -> float:
    """Seconds of an optimiser step that trains `model`, after one on the largest of a few batches, for the memory.

    As at the end of a run, where input is masked if ever; of a flat start most steps are shorter.
    """
    config, stage = job.config, job.stage(model, device)
    stage.module.train()
    optimizer = make_optimizer(stage)
    settings = config.batch_settings(crop_to_shortest=False)
    with closing(TrainingBatches(job.clips.cuts, settings, Skipped(named=False))) as batches:
        taken = sorted((stage.take(batches) for _ in range(_LOOKED_AT)), key=lambda one: one[0].waveforms.numel())
    parameters = [parameter for group in stage.groups for parameter in group.parameters]
    seconds = 0.0
    with _layers_stay(model), convolution_chosen(stage.module):  # as in the loop
        for batch, texts in (taken[-1], taken[_LOOKED_AT // 2]):
            started = time.perf_counter()
            inputs = (batch.waveforms.to(device), batch.lengths.to(device))
            for draw in range(config.accumulate):
                with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                    scalars = stage.module(*inputs, config.steps - 1, draw, *texts)
                (scalars["loss"] / config.accumulate).backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - started
    return seconds


def _sentence(measured: Mapping[str, Any], config: FinetuneConfig) -> str:
    return (
        f"about {duration_text(measured['estimated_seconds'])} for {config.steps:,} steps, "
        f"{measured['estimated_memory_mb']:,} MB (from one step)"
    )


def _groups(objective: RecognitionObjective, config: FinetuneConfig) -> list[Group]:
    model = objective.student
    inside = {id(parameter) for parameter in family_of(model).encoder(model).parameters()}
    parameters = [p for p in objective.parameters() if p.requires_grad]
    schedule = warm_up_then_decay(config.steps, config.warm_up)
    return [
        Group([p for p in parameters if id(p) in inside], config.learning_rate, schedule, config.weight_decay),
        Group([p for p in parameters if id(p) not in inside], config.head_learning_rate, schedule, config.weight_decay),
    ]


@contextmanager
def _layers_stay(model: Model) -> Iterator[None]:
    """While a model is trained, nothing of transformers' training mode but dropout and batch statistics."""
    encoder = family_of(model).encoder(model)
    before = [
        (place, name, getattr(place, name))
        for place in (encoder, encoder.config)
        for name in _OFF
        if hasattr(place, name)
    ]
    for place, name, _ in before:
        setattr(place, name, 0.0)
    try:
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


def _identity(source: Source, cuts: CutSet, config: FinetuneConfig, pupil: Pupil) -> dict[str, Any]:
    """What a checkpoint belongs to."""
    return {
        "command": "finetune",
        "source": source.name,
        "model_fingerprint": fingerprint(source.model),
        "tokens": pupil.tokens.size,
        **clips_of(cuts),
        "config": asdict(config),
    }
