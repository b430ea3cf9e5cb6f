"""Distillation of hidden states: L1 and cosine between a student's mapped states and its teacher's.

DPHuBERT (arXiv 2305.17651, section 2.2): L1 + (1 - cosine). DistilHuBERT: L1 - log sigmoid(cosine), which Wang et al.
(arXiv 2210.15631) took for their students.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diminuendo.distillation.layer_match import Matching, distances_between, near_at_random, nearest_in_order

CosineForm = Literal["one_minus", "log_sigmoid"]
Maps = Literal["shared", "layer", "last"]

COMPARED_FRAMES = 200  # of a batch, about, to find the nearest layers by


def default_layers(num_layers: int, maps: Maps = "shared", student_layers: int | None = None) -> tuple[int, ...]:
    """The published ones: with shared maps 0, 4, 8, 12 of 12 layers, in proportion; of the last state 4, 8, 12; of
    layers with maps of their own all.

    A student of up to three layers learns as many through a shared map, which cannot give two from one state.
    """
    if maps == "layer":
        return tuple(range(1, num_layers + 1))
    if maps == "shared" and student_layers is not None and student_layers <= 3:
        return tuple(sorted({num_layers * part // student_layers for part in range(student_layers + 1)}))
    first, parts = (0, 3) if maps == "shared" else (1, 3)
    return tuple(sorted({round(num_layers * part / parts) for part in range(first, parts + 1)}))


def valid_frames(frame_lengths: Int[Tensor, " batch"], frames: int) -> Bool[Tensor, "batch frames"]:
    return torch.arange(frames, device=frame_lengths.device) < frame_lengths[:, None]


class HiddenDistillation(nn.Module):
    """The loss between some layers of a teacher and layers of its student, over valid frames only.

    matching: the student's layers are the same ("fixed"); or for every batch those that after the map are nearest, in
    the order of layers ("free"); or drawn for every batch from those up to the layer, behind the one before ("random").
    The first states always learn from the first and the last, which heads read, from the last. Of a student of another
    depth, with fixed matching, they are those in proportion, behind rather than before.

    maps: linear. Layer 0 (the feature projection's output) has one of its own; the others share one ("shared"), or have
    one each, from the student's layer ("layer") or all from its last state ("last"). They start as the identity where
    student and teacher have one width, else as torch draws them.
    """

    def __init__(
        self,
        layers: Sequence[int],
        student_dim: int,
        teacher_dim: int,
        *,
        cosine: CosineForm = "one_minus",
        cosine_weight: float = 1.0,
        matching: Matching = "fixed",
        maps: Maps = "shared",
    ) -> None:
        super().__init__()
        self.matching, self.mapped_from = matching, maps
        self.layers = tuple(layers)
        self.cosine, self.cosine_weight = cosine, cosine_weight
        names = dict.fromkeys(map(self.map_of, sorted(self.layers)))
        self.maps = nn.ModuleDict({name: nn.Linear(student_dim, teacher_dim) for name in names})
        if student_dim == teacher_dim:
            for linear in self.maps.values():
                assert isinstance(linear, nn.Linear)
                nn.init.eye_(linear.weight)
                nn.init.zeros_(linear.bias)

    @property
    def wanted(self) -> frozenset[int]:
        """The teacher's layers that are read."""
        return frozenset(self.layers)

    @property
    def readers(self) -> tuple[str, ...]:
        """The matrices that read the student's states."""
        return tuple(f"maps.{name}.weight" for name in self.maps)

    def map_of(self, layer: int) -> str:
        """The name of a teacher's layer's map."""
        return "first" if not layer else "shared" if self.mapped_from == "shared" else f"layer_{layer}"

    def forward(
        self,
        student: Sequence[Float[Tensor, "batch frames student_dim"]],
        teacher: Sequence[Float[Tensor, "batch frames teacher_dim"]],
        frame_lengths: Int[Tensor, " batch"],
    ) -> dict[str, Float[Tensor, ""]]:
        """All hidden states of both; gives `loss`, and its parts `l1` and `cosine`, as means over layers and frames."""
        assert student[0].shape[:2] == teacher[0].shape[:2], (student[0].shape, teacher[0].shape)
        # The frames' numbers are looked up once: the mask itself, as an index, would be counted for every state.
        frames = valid_frames(frame_lengths, student[0].shape[1]).flatten().nonzero().flatten()
        l1, cosine = student[0].new_zeros(()), student[0].new_zeros(())
        own = self._matched(student, teacher, frames)
        for layer in self.layers:
            mapped = self.maps[self.map_of(layer)](student[own[layer]].flatten(0, 1)[frames])
            target = teacher[layer].flatten(0, 1)[frames]
            l1 = l1 + F.l1_loss(mapped, target)
            similarity = F.cosine_similarity(mapped.float(), target.float(), dim=-1)
            form = 1.0 - similarity if self.cosine == "one_minus" else -F.logsigmoid(similarity)
            cosine = cosine + form.mean()
        l1, cosine = l1 / len(self.layers), cosine / len(self.layers)
        return {"loss": l1 + self.cosine_weight * cosine, "l1": l1, "cosine": cosine}

    def _matched(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], frames: Int[Tensor, " valid"]
    ) -> dict[int, int]:
        """By the teacher's layer the student's."""
        depth = len(student) - 1
        same = {layer: math.ceil(layer * depth / (len(teacher) - 1)) for layer in self.layers}
        if self.mapped_from == "last":
            return {layer: layer and depth for layer in self.layers}
        layers = [layer for layer in self.layers if 0 < layer < depth]
        if self.matching == "fixed" or not layers:
            return same
        if self.matching == "random":
            return same | dict(zip(layers, near_at_random(layers, depth - 1), strict=True))
        some = frames[:: max(1, len(frames) // COMPARED_FRAMES)]
        with torch.no_grad():
            mapped = [self.maps["shared"](state.flatten(0, 1)[some]) for state in student[1:-1]]
        found = nearest_in_order(distances_between(mapped, [teacher[layer].flatten(0, 1)[some] for layer in layers]))
        return same | {layer: column + 1 for layer, column in zip(layers, found, strict=True)}
