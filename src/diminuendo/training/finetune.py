"""A recogniser from an encoder, or from another recogniser, and labelled audio."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet

from diminuendo.data.batching import look_at_one
from diminuendo.errors import UserError
from diminuendo.export.huggingface import save
from diminuendo.families import Model, family_of
from diminuendo.profiling.count import count_parameters
from diminuendo.training.card import recogniser_card
from diminuendo.training.config import LoopConfig
from diminuendo.training.finetune_config import FinetuneConfig
from diminuendo.training.kernels import choose_attention
from diminuendo.training.loop import Group, Loop, Stage, carry_out
from diminuendo.training.recogniser import LabelledClips, Pupil, pupil_of
from diminuendo.training.recognition import RecognitionObjective, hearing_of
from diminuendo.training.removing import Source
from diminuendo.training.run import Run, clips_of, defaults_of, fingerprint
from diminuendo.training.schedules import warm_up_then_decay

# Of transformers' training mode: whole layers that go at random, and masks from another generator than torch's.
_OFF = ("layerdrop", "mask_time_prob", "mask_feature_prob")


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
    pupil = pupil_of(source, cuts, config)
    model = pupil.model
    clips = LabelledClips(cuts, pupil, config)
    look_at_one(clips.cuts, config.batch_settings(crop_to_shortest=False))  # unusable audio is found before writing
    run = Run(out, _identity(source, cuts, config, pupil), defaults_of(config))

    def train(trainer: Loop) -> tuple[dict[str, Any], Callable[[], None]]:
        device = trainer.accelerator.device
        choose_attention(model, config, device)
        torch.manual_seed(config.seed)
        weight = config.ctc_weight if pupil.ctc_beside else 0.0
        hearing = hearing_of(config)
        objective = RecognitionObjective(model, source.extractor, hearing, ctc_weight=weight).to(device)
        with _layers_stay(model):
            stage = Stage("recognition", config.steps, objective, _groups(objective, config), texts=clips.texts)
            skipped = trainer.run_stage(stage, clips.cuts, crop_to_shortest=False)
        result = {
            "params": count_parameters(model),
            "task": pupil.task,
            "new_head": pupil.new,
            "tokens": pupil.tokens.size - 1,
            "loss": run.last_logged("loss"),
            "steps": config.steps,
            "skipped": skipped,
            "left_out": clips.left_out,
            "out": str(out),
        }

        def write() -> None:
            architecture = family_of(model).architecture_of(model)
            assert architecture is not None
            card = recogniser_card(result, asdict(config), auto_class=architecture.auto_class)
            save(model.cpu().eval(), source.extractor, out, card=card, tokenizer=pupil.tokens.tokenizer)

        return result, write

    return carry_out(run, config, loop, train, resume=resume, overwrite=overwrite)


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
