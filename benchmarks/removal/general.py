"""Removal by the general pruner Torch-Pruning of the same things: heads, neurons, channels of convolutions.

It knows no speech models; what its user has to do by hand is what its own examples do for BERT and ViT, and a little
more. MANUAL_STEPS says what, in the order of the code.
"""

import importlib.metadata
import math
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from benchmarks.removal.ours import Removed, plain_and_axes
from benchmarks.step.clock import Clock
from diminuendo.families import Model, build_cost_model
from diminuendo.structure.axis import Axis, Selection

VERSION = importlib.metadata.version("torch-pruning")  # torch_pruning.__version__ lags behind
ROUND_TO = 8  # widths, as ours
TRIED = 1000  # ratios between 0 and 1
MANUAL_STEPS = (
    "search for the ratio that keeps so many MACs (here with diminuendo's cost model, outside of the time taken): "
    "the pruner takes ratios, not budgets",
    "multiply out the weight norm of the positional convolution: torch pickles no module that has one, and to pickle "
    "the whole object is how a pruned model is saved",
    "name the q, k and v projections of every layer with their heads (num_heads), else it prunes across heads",
    "name what writes into the residual stream (feature projection, positional convolution, out_proj, output_dense) "
    "as ignored, else the hidden size is pruned",
    "write a pruner for the group norm of one channel a group: the one there takes groups to stay, and the first "
    "convolution would keep all of its channels without a word",
    "reduce the output to one tensor (output_transform)",
    "set num_heads of every attention afterwards",
)


class ChannelNormPruner(tp.pruner.function.GroupNormPruner):  # type: ignore[misc]
    """For a group norm of as many groups as channels, which are to stay as many."""

    def prune_out_channels(self, layer: nn.GroupNorm, idxs: Any) -> nn.Module:
        super().prune_out_channels(layer, idxs)
        layer.num_groups = layer.num_channels
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channel_groups(self, layer: nn.GroupNorm) -> int:
        return 1

    get_in_channel_groups = get_out_channel_groups


def remove_ratio(model: Model, macs: float) -> Removed:
    """The same ratio of every layer, the least that leaves no more than `macs`."""
    ratio = ratio_for(model, macs)
    pruned, axes = plain_and_axes(model)  # a copy without weight norm; not in its time, for it prunes in place
    clock = Clock(torch.device("cpu"))
    layers = pruned.encoder.layers
    residual = [pruned.feature_projection.projection, pruned.encoder.pos_conv_embed]
    residual += [writer for layer in layers for writer in (layer.attention.out_proj, layer.feed_forward.output_dense)]
    pruner = tp.pruner.BasePruner(
        pruned,
        {"input_values": torch.randn(1, 16_000)},
        importance=tp.importance.MagnitudeImportance(p=1, group_reduction="sum", normalizer=None, bias=True),
        pruning_ratio=ratio,
        round_to=ROUND_TO,
        num_heads={
            getattr(layer.attention, name): layer.attention.num_heads
            for layer in layers
            for name in ("q_proj", "k_proj", "v_proj")
        },
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=ratio,
        ignored_layers=residual,
        customized_pruners={nn.GroupNorm: ChannelNormPruner()},
        output_transform=lambda output: output.last_hidden_state.sum(),
    )
    clock.mark("graph")
    selection = _prune(pruner, axes)
    for layer in layers:
        layer.attention.num_heads = pruner.num_heads[layer.attention.q_proj]
    clock.mark("scores and removal")
    return Removed(pruned, selection, clock.seconds())


def ratio_for(model: Model, macs: float) -> float:
    """The least ratio that leaves no more than `macs` per second, by the sizes to which the pruner rounds."""
    plain, axes = plain_and_axes(model)
    cost = build_cost_model(plain, axes)
    for number in range(TRIED):
        sizes = torch.tensor([_kept(axis, number / TRIED) for axis in axes], dtype=torch.float64)
        if float(cost.at_sizes("macs", sizes)) <= macs:
            return number / TRIED
    raise ValueError(f"no ratio leaves {macs:.3g} MACs per second")


def _kept(axis: Axis, ratio: float) -> float:
    if axis.kind == "sublayer":
        return 1.0
    if axis.kind == "heads":
        return float(axis.size - math.ceil(ratio * axis.size))
    kept = int(axis.size * (1 - ratio))
    if kept < ROUND_TO:
        return float(axis.size)  # what would leave nothing it does not prune
    return float(axis.size if kept == axis.size else kept - kept % ROUND_TO)


def _prune(pruner: Any, axes: tuple[Axis, ...]) -> Selection:
    """Prunes, and tells which members of our axes that leaves."""
    owners = {piece.parameter: (axis, piece) for axis in axes for piece in axis.slices if piece.dim == 0}
    names = {module: name for name, module in pruner.model.named_modules()}
    kept = {axis.name: torch.ones(axis.size, dtype=torch.bool) for axis in axes}
    for group in pruner.step(interactive=True):
        for dependency, entries in group:
            owner = owners.get(f"{names.get(dependency.target.module)}.weight")
            if owner is not None and pruner.DG.is_out_channel_pruning_fn(dependency.handler):
                axis, piece = owner
                members = piece.members(axis.size, len(dependency.target.module.weight))
                kept[axis.name][members[entries]] = False
        group.prune()
    return kept
