"""Removal as training does it: a gated model and a smaller one, compared on real audio before anyone relies on it."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from diminuendo.data.batching import Batch
from diminuendo.distillation.hidden import valid_frames
from diminuendo.families import Model, build, family_of, model_inputs
from diminuendo.families.family import shape_before
from diminuendo.families.transducer import is_transducer
from diminuendo.pruning.factorize import multiply_back
from diminuendo.pruning.gating import Gates, plain_state
from diminuendo.pruning.removal import remove
from diminuendo.structure.axis import Axis, Selection
from diminuendo.structure.shape import Shape, shape_of
from diminuendo.tasks.transducer import joint_logits, predict

REMOVAL_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Source:
    """A model with its feature extractor, and the directory or hub id they came from, if any."""

    model: Model
    extractor: Any
    name: str | None = None


def free_axes(model: Model, fixed: Collection[str], *, head: bool = False) -> tuple[Axis, ...]:
    """The axes that may shrink, of other kinds than `fixed`: those that losses on hidden states see.

    head: and those of a transducer's predictor and joint network, which the loss of its task sees.
    """
    family = family_of(model)
    free = [axis for axis in (family.axes if head else family.encoder_axes)(model) if axis.kind not in fixed]
    names = {axis.name for axis in free}
    return tuple(axis if axis.parent in names else replace(axis, parent=None) for axis in free)


@dataclass(frozen=True)
class Removal:
    """error: the largest relative difference from the gated model, over all hidden states."""

    model: Model
    shape: Shape
    error: float


def remove_and_compare(
    source: Source, gated: Model, gates: Gates, selection: Selection, floors: Collection[float], batch: Batch
) -> Removal:
    """What is left of `gated` (a plain copy of the source's model, under `gates`) when only a selection stays.

    floors: of what stays, gates are at least this; the last is how the model comes out, all are compared with the gated
    one. RuntimeError if they differ.
    """
    whole = shape_of(family_of(gated).axes(gated))
    shape: Shape = {**whole, **shape_before(source.model), **shape_of(gates.axes, selection)}
    error, removed, left = 0.0, None, shape
    for floor in floors:
        gates.evaluate(selection, floor)
        state, left = multiply_back(gates.axes, remove(gates.axes, plain_state(gated), selection), shape)
        removed = build(source.model, left, state)
        here = removal_error(removed, gated, source.extractor, batch, selection.get("width"))
        error = max(error, here)
        if not here < REMOVAL_TOLERANCE:  # nor NaN, which no maximum would show
            raise RuntimeError(
                f"the removed model is not the gated one: relative error {here:.2e}, allowed {REMOVAL_TOLERANCE:g}; "
                "no model was written, please report this"
            )
    return Removal(removed, left, error)


def gateable(model: Model, *, factored: bool, meta: bool = False) -> Model:
    """A copy of a model whose weights can be gated.

    factored: with the ranks of its matrices as axes. meta: without values, to know what it costs.
    """
    family = family_of(model)
    plain = family.plain(model)
    if meta:
        plain.to("meta")
    return family.factorised(plain) if factored else plain


def removed_again(
    source: Source, shape: Shape, fixed: Collection[str], *, factored: bool = False, head: bool = False
) -> Model:
    """A model of a shape that was removed before, for a checkpoint to fill. head: as of `free_axes`."""
    plain = gateable(source.model, factored=factored)
    axes = free_axes(plain, fixed, head=head)
    # Which members stay matters for sizes only: the checkpoint holds their weights. What was multiplied back has no
    # ranks in the shape, and will be again.
    selection = {axis.name: _any_members(axis.size, shape.get(axis.name, axis.size)) for axis in axes}
    for axis in axes:
        if axis.parent is not None and not selection[axis.parent].any():
            selection[axis.name][:] = False
    state, _ = multiply_back(axes, remove(axes, dict(plain.state_dict()), selection), shape_of(axes, selection))
    return build(source.model, shape, {name: value.clone() for name, value in state.items()})


def _any_members(size: int, kept: int | list[int]) -> torch.Tensor:
    count = kept if isinstance(kept, int) else len(kept)
    return torch.arange(size) < count


def removal_error(
    removed: Model, gated: Model, extractor: Any, batch: Batch, width: Bool[Tensor, " dim"] | None = None
) -> float:
    """The largest ||a - b|| / ||b|| over hidden states, valid frames only, in fp32; NaN where any is.

    Of a transducer also over what its joint network gives for some labels.
    width: which members of the gated model's residual stream are there in the removed one, if not all.
    """
    family, device = family_of(gated), gated.device
    lengths = batch.lengths.to(device)
    inputs = model_inputs(extractor, batch.waveforms.to(device), lengths)
    removed.to(device)
    # TensorFloat-32, on by default in convolutions on GPUs, has a relative precision of 1e-3.
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        states = family.hidden_states(removed, inputs), family.hidden_states(gated, inputs)
        valid = valid_frames(family.frame_lengths(gated, lengths), states[0][0].shape[1])
        kept = slice(None) if width is None else width.to(device)
        errors = [(a - b[..., kept])[valid].norm() / b[..., kept][valid].norm() for a, b in zip(*states, strict=True)]
        if is_transducer(gated):
            joint = [_logits(model, found[-1]) for model, found in zip((removed, gated), states, strict=True)]
            errors.append((joint[0] - joint[1])[valid].norm() / joint[1][valid].norm())
        return float(torch.stack(errors).max())


def _logits(model: Model, states: Tensor) -> Tensor:
    """What a transducer makes of the last states and of the same few labels for every clip."""
    some = torch.arange(4, device=states.device).expand(len(states), -1)
    return joint_logits(model, model.encoder_projector(states), predict(model, some))
