"""How far the hidden states move when one axis of a model is cut to half and all else stays.

What a compression can take at little loss, and what it cannot, before one is begun. Nothing is learned: of an axis the
members of most magnitude stay. A cut is a set of gates, so there is one model, whose gates change from axis to axis.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from lhotse import CutSet
from torch import Tensor

from diminuendo.data.batching import Batch, TrainingBatches
from diminuendo.data.sampling import BatchSettings
from diminuendo.distillation.hidden import valid_frames
from diminuendo.errors import UserError
from diminuendo.families import Model, build_cost_model, family_of, model_inputs
from diminuendo.importance import Scores, magnitude
from diminuendo.pruning.budget import selected_cost
from diminuendo.pruning.gating import Gates, attach
from diminuendo.structure.axis import Axis, AxisKind, Selection

BATCH_SECONDS = 20.0

Pass = tuple[Batch, Axis | None]
"""A batch through the model with one axis cut; with none the states that the others are compared with."""


@dataclass(frozen=True)
class AxisSensitivity:
    """What cutting one axis from `members` to `kept` does.

    params_freed, macs_freed: as fractions of the whole model's. changes: of every hidden state ||cut - whole|| /
    ||whole|| over all valid frames; last: of the last state; largest: of the state that moves most.
    """

    axis: str
    kind: AxisKind
    members: int
    kept: int
    params_freed: float
    macs_freed: float
    last: float
    largest: float
    changes: tuple[float, ...]


def audio_batches(cuts: CutSet, seconds: float) -> list[Batch]:
    """About `seconds` of audio in batches, drawn as for training; all there is, if that is less.

    UserError if no clip can be used.
    """
    stream = TrainingBatches(cuts, BatchSettings(seconds_per_batch=min(seconds, BATCH_SECONDS)))
    batches: list[Batch] = []
    try:
        while sum(batch.seconds for batch in batches) < seconds:
            batch = next(stream)
            if stream.state_dict()["epoch"] > 0:  # clips come again
                break
            batches.append(batch)
    finally:
        stream.close()
    return batches


def halved(axes: Sequence[Axis], axis: Axis, scores: Scores) -> Selection:
    """All members of all axes but one: of that the half of highest score, rounded down, or as many as must stay.

    So an axis of one member goes as a whole, and if it is a sublayer all inside it too.
    """
    best = scores[axis.name].argsort(descending=True, stable=True)[: max(axis.minimum, axis.size // 2)]
    selection = {other.name: torch.full((other.size,), other.parent != axis.name) for other in axes}
    selection[axis.name] = torch.zeros(axis.size, dtype=torch.bool).index_fill(0, best, True)
    return selection


@torch.inference_mode()
def measure(
    model: Model,
    extractor: Any,
    batches: Sequence[Batch],
    device: str = "cpu",
    track: Callable[[Sequence[Pass]], Iterable[Pass]] = iter,
) -> list[AxisSensitivity]:
    """Cuts every axis in turn, in the order of the signal; the model itself is not touched.

    track: gives the passes one by one and may show how many are done. UserError if hidden states are not finite.
    """
    family = family_of(model)
    plain = family.plain(model).cpu()
    axes = family.encoder_axes(plain)
    cost = build_cost_model(plain, axes)
    scores = magnitude(axes, plain.state_dict())
    selections = {axis.name: halved(axes, axis, scores) for axis in axes}
    gates = Gates(axes)
    attach(plain, gates)
    plain.to(device)
    gates.to(device)
    everything: Selection = {axis.name: torch.ones(axis.size, dtype=torch.bool) for axis in axes}

    moved: dict[str, Tensor | float] = {axis.name: 0.0 for axis in axes}  # squares, summed over batches
    total: Tensor | float = 0.0
    whole: list[Tensor] = []
    # One batch after the other, not one axis after the other: so the states of one batch are held, not of all.
    for batch, axis in track([(batch, axis) for batch in batches for axis in (None, *axes)]):
        gates.evaluate(everything if axis is None else selections[axis.name], floor=1.0)
        states = _valid_states(plain, extractor, batch)
        if axis is None:
            whole = states
            total = total + _squares(whole)
        else:
            if axis.kind == "width":  # a state that is normed later still has there what it had
                gone = ~selections[axis.name][axis.name].to(device)
                states = [state.masked_fill(gone, 0.0) for state in states]
            moved[axis.name] = moved[axis.name] + _squares([a - b for a, b in zip(states, whole, strict=True)])

    rows = []
    for axis in axes:
        changes = torch.as_tensor(moved[axis.name] / total).sqrt()
        if not changes.isfinite().all():
            raise UserError(
                "the model's hidden states on this audio are not finite, or zero everywhere, so changes of them mean "
                "nothing; check the model's weights and DATA"
            )
        freed = {
            kind: 1 - selected_cost(cost, kind, selections[axis.name]) / cost.total(kind) for kind in ("params", "macs")
        }
        rows.append(
            AxisSensitivity(
                axis=axis.name,
                kind=axis.kind,
                members=axis.size,
                kept=int(selections[axis.name][axis.name].sum()),
                params_freed=freed["params"],
                macs_freed=freed["macs"],
                last=float(changes[-1]),
                largest=float(changes.max()),
                changes=tuple(changes.tolist()),
            )
        )
    return rows


def _valid_states(model: Model, extractor: Any, batch: Batch) -> list[Float[Tensor, "frames dim"]]:
    """Every hidden state at the valid frames of all clips."""
    family = family_of(model)
    lengths = batch.lengths.to(model.device)
    inputs = model_inputs(extractor, batch.waveforms.to(model.device), lengths)
    # TensorFloat-32, on by default in convolutions on GPUs, has a relative precision of 1e-3.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        states = family.hidden_states(model, inputs)
    valid = valid_frames(family.frame_lengths(model, lengths), states[0].shape[1])
    return [state[valid] for state in states]


def _squares(states: Sequence[Tensor]) -> Float[Tensor, " states"]:
    """The sum of squares of each, in double precision: batches are added up."""
    return torch.stack([state.norm() for state in states]).cpu().double().square()
