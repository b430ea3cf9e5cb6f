"""Removal without learning what can go: baselines, and for users in a hurry. In one step or several."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from diminuendo.data.audio import Skipped
from diminuendo.data.batching import Batch, TrainingBatches
from diminuendo.distillation.hidden import valid_frames
from diminuendo.families import Model, build_cost_model, family_of, model_inputs
from diminuendo.importance import Scores, at_random, magnitude, taylor, whole_layers
from diminuendo.pruning.budget import Budget, select, selected_cost
from diminuendo.pruning.gating import Gates, attach
from diminuendo.structure.axis import Axis
from diminuendo.training.hearing import Hearing
from diminuendo.training.labelled import Clips
from diminuendo.training.loop import Loop
from diminuendo.training.recognition import RecognitionObjective, in_evaluation
from diminuendo.training.removing import free_axes, remove_and_compare, removed_again
from diminuendo.training.two_stages import TwoStages

TAYLOR_BATCHES = 8


def remove_in_rounds(stages: TwoStages, trainer: Loop) -> Model:
    """The removed model. Before every round but the first the one so far is distilled; kept fractions are geometric."""
    config = stages.config
    kept = config.budget.amount(stages.total) / stages.total
    names = [*(f"round {number}" for number in range(1, config.rounds)), "distil"]
    resumed = names.index(trainer.resumed_stage) if trainer.resumed_stage is not None else -1
    model = stages.source.model
    for i, name in enumerate(names):
        if i < resumed:
            continue
        if i == resumed:
            model = removed_again(stages.source, trainer.carried["shape"], config.fixed_kinds)
        else:
            skipped = trainer.carried.get("skipped", "")
            model, facts = _remove(stages, trainer, model, kept ** ((i + 1) / len(names)))
            trainer.carried = {**facts, "skipped": skipped}
        if name != "distil":
            stages.recover(trainer, model, name, i)
    return model


def _remove(stages: TwoStages, trainer: Loop, model: Model, kept: float) -> tuple[Model, dict[str, Any]]:
    config = stages.config
    plain = stages.family.plain(model).cpu()
    axes = free_axes(plain, config.fixed_kinds)
    cost = build_cost_model(plain, axes, stages.cost.table)
    budget = Budget(config.budget.kind, kept * stages.total, absolute=True)
    scores = _scores(stages, plain, axes, trainer.accelerator.device)
    # Processes remove the same: on GPUs sums of gradients are not alike to the last bit.
    (scores,) = broadcast_object_list([scores])
    selection = select(cost, budget, stages.total, scores, config.round_to)
    gates = Gates(axes)
    attach(plain, gates)
    source = replace(stages.source, model=model)
    removal = remove_and_compare(source, plain, gates, selection, [1.0], stages.check_batch)
    facts = {
        "heads": stages.heads_for(trainer, plain, gates, selection),
        "shape": removal.shape,
        "expected_before_selection": selected_cost(cost, budget.kind, selection) / stages.total,
        "removal_error": removal.error,
    }
    return removal.model, facts


def _scores(stages: TwoStages, plain: Model, axes: tuple[Axis, ...], device: torch.device) -> Scores:
    config = stages.config
    if config.method == "random":
        return at_random(axes, config.seed)
    if config.method == "magnitude":
        return magnitude(axes, plain.state_dict())
    if config.method == "layerdrop":
        return whole_layers(axes)
    plain.to(device)
    if stages.clips is None or stages.clips.pupil.new:  # a head that is new knows nothing that could be lost
        values = _states(stages, plain)
    else:
        values = _losses(stages, plain, stages.clips)
    scores = taylor(axes, plain, values, config.seed)
    plain.cpu()
    return scores


def _losses(stages: TwoStages, model: Model, clips: Clips) -> Iterator[Callable[[], Sequence[Tensor]]]:
    """For every clip of some batches, what gives the loss of the task that the model has."""
    objective = RecognitionObjective(model, stages.source.extractor, Hearing())
    in_evaluation(model)
    for batch in _batches(stages):
        labelled, texts = clips.texts(batch)
        for waveform, length, text in zip(labelled.waveforms, labelled.lengths, texts, strict=True):
            yield partial(_loss, objective, waveform[: int(length)].to(model.device), length.to(model.device), text)


def _loss(objective: RecognitionObjective, waveform: Tensor, length: Tensor, text: Sequence[int]) -> list[Tensor]:
    return [objective(waveform[None], length[None], 0, 0, [text])["loss"]]


def _batches(stages: TwoStages) -> Iterator[Batch]:
    settings = stages.config.batch_settings(crop_to_shortest=stages.crops)
    batches = TrainingBatches(stages.cuts, settings, Skipped(named=False))
    try:
        yield from islice(batches, TAYLOR_BATCHES)
    finally:
        batches.close()


def _states(stages: TwoStages, model: Model) -> Iterator[Callable[[], Sequence[Tensor]]]:
    """For some batches, what gives the distilled hidden states of valid frames."""
    for batch in _batches(stages):
        yield partial(_valid_states, stages, model, batch.waveforms.to(model.device), batch.lengths)


def _valid_states(stages: TwoStages, model: Model, waveforms: Tensor, lengths: Tensor) -> list[Tensor]:
    family, lengths = family_of(model), lengths.to(model.device)
    states = family.hidden_states(model, model_inputs(stages.source.extractor, waveforms, lengths))
    valid = valid_frames(family.frame_lengths(model, lengths), states[0].shape[1])
    return [states[layer][valid] for layer in stages.layers]
