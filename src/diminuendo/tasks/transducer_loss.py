"""The loss of a transducer (RNN-T): Graves 2012, arXiv 1211.3711, without a copy of the logits in single precision.

Logits have a vocabulary for every node (frame, labels emitted so far), so they are the largest tensor of a training
step by far. All that alignments need of them are two numbers a node, the lattice: the log-probabilities of blank and of
the next label. Both functions here have backward passes of their own: the lattice's makes softmaxes anew, piece by
piece in what fits a cache, and writes the one tensor that cannot be avoided, the gradient.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

Reduction = Literal["mean", "sum", "none"]

# Logits worked on at a time. On a CPU they stay in its second cache; elsewhere each piece is a launch of its own.
CACHED, LAUNCHED = 2**17, 2**24


def lattice(
    logits: Float[Tensor, "batch frames columns vocabulary"],
    targets: Int[Tensor, "batch labels"],
    blank: int,
    frame_lengths: Int[Tensor, " batch"] | None = None,
    target_lengths: Int[Tensor, " batch"] | None = None,
) -> tuple[Float[Tensor, "batch frames columns"], Float[Tensor, "batch frames columns"]]:
    """Log-probabilities of blank and of the next label at every node, in fp32 (fp64 for logits in fp64).

    `columns` is labels + 1: column u has u labels behind it, and targets[:, u] is its next. Where none is left, in
    column `target_lengths`, the next label's is -inf. With lengths, nodes beyond them are -inf in both, their logits
    are not read, and have a gradient of exactly 0.

    Raises:
        ValueError: shapes that do not fit, lengths or targets out of range, or a blank among the targets.
    """
    sizes = _sizes(logits, targets, blank, frame_lengths, target_lengths)
    blanks, labels = _Lattice.apply(logits, targets, blank, sizes)  # type: ignore[no-untyped-call]
    return blanks, labels


def transducer_loss(
    logits: Float[Tensor, "batch frames columns vocabulary"],
    targets: Int[Tensor, "batch labels"],
    frame_lengths: Int[Tensor, " batch"],
    target_lengths: Int[Tensor, " batch"],
    blank: int,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*batch"]:
    """-log p(targets) summed over all alignments, in nats, in fp32 (fp64 for logits in fp64).

    "mean" is over clips, as in torchaudio and warprnnt-numba and as transformers' "mean_batch", so that a clip counts
    the same whatever it is batched with. (Parakeet's own default in transformers, "mean_volume", is "sum" over
    `target_lengths.sum()`, which is undefined where no clip has labels.) A clip whose alignments all have probability 0
    has a loss of inf and a gradient that is not a number.

    Raises:
        ValueError: as `lattice`, or an unknown reduction.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: expected mean, sum or none, got {reduction!r}")
    blanks, labels = lattice(logits, targets, blank, frame_lengths, target_lengths)
    lengths = (frame_lengths.to(logits.device), target_lengths.to(logits.device))
    losses: Tensor = _Alignments.apply(blanks, labels, *lengths)  # type: ignore[no-untyped-call]
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


def _sizes(
    logits: Tensor, targets: Tensor, blank: int, frame_lengths: Tensor | None, target_lengths: Tensor | None
) -> list[tuple[int, int]]:
    """Frames and labels of every clip. ValueError for what does not fit together."""
    if logits.dim() != 4 or not logits.is_floating_point():
        expected = "floats, batch x frames x labels + 1 x vocabulary"
        raise ValueError(f"logits: expected {expected}, got {logits.dtype}, {tuple(logits.shape)}")
    batch, frames, columns, vocabulary = logits.shape
    if targets.shape != (batch, columns - 1):
        raise ValueError(f"targets: expected {(batch, columns - 1)} for these logits, got {tuple(targets.shape)}")
    if not 0 <= blank < vocabulary:
        raise ValueError(f"blank: expected a number from 0 to {vocabulary - 1}, got {blank}")
    clips = zip(
        _lengths("frame_lengths", frame_lengths, batch, 1, frames),
        _lengths("target_lengths", target_lengths, batch, 0, columns - 1),
        strict=True,
    )
    sizes = list(clips)
    for clip, (row, (_, count)) in enumerate(zip(targets.tolist(), sizes, strict=True)):
        wrong = [label for label in row[:count] if label == blank or not 0 <= label < vocabulary]
        if wrong:
            expected = f"labels from 0 to {vocabulary - 1}, none of them blank ({blank})"
            raise ValueError(f"targets: expected {expected}, got {wrong[0]} in clip {clip}")
    return sizes


def _lengths(name: str, lengths: Tensor | None, batch: int, low: int, high: int) -> list[int]:
    if lengths is None:
        lengths = torch.full((batch,), high)
    if lengths.shape != (batch,):
        raise ValueError(f"{name}: expected one for each of {batch} clips, got a shape of {tuple(lengths.shape)}")
    found: list[int] = lengths.tolist()
    if not all(low <= length <= high for length in found):
        raise ValueError(f"{name}: expected from {low} to {high}, got {found}")
    return found


Piece = tuple[int, slice, slice]


def _pieces(logits: Tensor, sizes: Sequence[tuple[int, int]]) -> Iterator[Piece]:
    """Clip, frames and columns of the logits within sizes, a few frames at a time."""
    at_once = CACHED if logits.device.type == "cpu" else LAUNCHED
    for clip, (frames, labels) in enumerate(sizes):
        step = max(1, at_once // ((labels + 1) * logits.shape[-1]))
        for start in range(0, frames, step):
            yield clip, slice(start, min(start + step, frames)), slice(labels + 1)


def _next_labels(targets: Tensor, piece: Piece) -> Int[Tensor, "frames columns-1 1"]:
    clip, frames, columns = piece
    labels = targets[clip, : columns.stop - 1].long()
    return labels.expand(frames.stop - frames.start, -1)[..., None]


# Functions of their own, so that what they make of one piece is gone before the next.
def _two_log_probs(
    logits: Float[Tensor, "frames columns vocabulary"],
    labels: Int[Tensor, "frames columns-1 1"],
    blank: int,
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "frames columns"], Float[Tensor, "frames columns-1"]]:
    log_probs = torch.log_softmax(logits, -1, dtype=dtype)
    return log_probs[..., blank], log_probs[:, :-1].gather(2, labels)[..., 0]


def _to_logits(
    logits: Float[Tensor, "frames columns vocabulary"],
    labels: Int[Tensor, "frames columns-1 1"],
    blank: int,
    to_blanks: Float[Tensor, "frames columns"],
    to_labels: Float[Tensor, "frames columns-1"],
) -> Float[Tensor, "frames columns vocabulary"]:
    found = torch.softmax(logits, -1, dtype=to_blanks.dtype)
    found *= -(to_blanks + F.pad(to_labels, (0, 1)))[..., None]
    found[..., blank] += to_blanks
    found[:, :-1].scatter_add_(2, labels, to_labels[..., None])
    return found


class _Lattice(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, blank: int, sizes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        targets = targets.to(logits.device)
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        blanks = logits.new_full(logits.shape[:3], -torch.inf, dtype=dtype)
        labels = blanks.clone()
        for piece in _pieces(logits, sizes):
            two = _two_log_probs(logits[piece], _next_labels(targets, piece), blank, dtype)
            blanks[piece], labels[piece][:, :-1] = two
        ctx.save_for_backward(logits, targets)
        ctx.blank, ctx.sizes = blank, sizes
        return blanks, labels

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_blanks: Tensor, to_labels: Tensor) -> tuple[Tensor, None, None, None]:
        logits, targets = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for clip, (frames, labels) in enumerate(ctx.sizes):
            gradient[clip, frames:] = 0.0
            gradient[clip, :frames, labels + 1 :] = 0.0
        for piece in _pieces(logits, ctx.sizes):
            to_two = (to_blanks[piece], to_labels[piece][:, :-1])
            gradient[piece] = _to_logits(logits[piece], _next_labels(targets, piece), ctx.blank, *to_two)
        return gradient, None, None, None


class _Alignments(torch.autograd.Function):
    """-log of the sum over alignments, whose gradient is minus how often they pass through each transition.

    Sums are in double precision: log-probabilities of alignments are thousands of nats, of which fp32 knows four digits
    behind the point, and there are hundreds of additions to each.
    """

    @staticmethod
    def forward(
        ctx: Any,
        blanks: Float[Tensor, "batch frames columns"],
        labels: Float[Tensor, "batch frames columns"],
        frame_lengths: Int[Tensor, " batch"],
        target_lengths: Int[Tensor, " batch"],
    ) -> Float[Tensor, " batch"]:
        lengths = (frame_lengths, target_lengths)
        b, n = blanks.double(), labels.double()
        # Where the transitions into a node come from. At (0, 0) the blank is that of `_summed`'s start, for nothing.
        into = (F.pad(b, (0, 0, 1, -1)), F.pad(n, (1, -1)))
        ends = (torch.arange(len(b), device=b.device), frame_lengths - 1, target_lengths)
        if not any(ctx.needs_input_grad):
            return -(_summed(*into)[ends] + b[ends]).to(blanks.dtype)
        # What follows a node is the same sum from the other end; both at once cost little more than one.
        turned = [torch.cat([one, _turned(two, *lengths)]) for one, two in zip(into, (b, n), strict=True)]
        before, after = _summed(*turned).chunk(2)
        after = torch.where(_valid(b, *lengths), _turned(after, *lengths), -torch.inf)
        total = after[:, 0, 0]
        after_blank = F.pad(after, (0, 0, -1, 1), value=-torch.inf)
        after_blank[ends] = 0.0
        after_label = F.pad(after, (-1, 1), value=-torch.inf)
        before = before - total[:, None, None]
        passed = [(before + x).exp() for x in (b + after_blank, n + after_label)]
        ctx.save_for_backward(*(x.to(blanks.dtype) for x in passed))
        return -total.to(blanks.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_losses: Float[Tensor, " batch"]) -> tuple[Tensor, Tensor, None, None]:
        by_blank, by_label = ctx.saved_tensors
        scale = -to_losses[:, None, None]
        return scale * by_blank, scale * by_label, None, None


def _valid(
    nodes: Tensor, frame_lengths: Int[Tensor, " batch"], target_lengths: Int[Tensor, " batch"]
) -> Bool[Tensor, "batch frames columns"]:
    frames, columns = (torch.arange(size, device=nodes.device) for size in nodes.shape[1:])
    in_time, in_text = frames < frame_lengths[:, None], columns <= target_lengths[:, None]
    return in_time[:, :, None] & in_text[:, None]


def _turned(
    nodes: Float[Tensor, "batch frames columns"],
    frame_lengths: Int[Tensor, " batch"],
    target_lengths: Int[Tensor, " batch"],
) -> Float[Tensor, "batch frames columns"]:
    """Each clip's own nodes from the last to the first; anything beyond them."""
    clips, frames, columns = (torch.arange(size, device=nodes.device) for size in nodes.shape)
    last_first = (frame_lengths[:, None] - 1 - frames).clamp(min=0)
    return nodes[
        clips[:, None, None], last_first[:, :, None], (target_lengths[:, None] - columns).clamp(min=0)[:, None]
    ]


def _summed(
    by_blank: Float[Tensor, "clips frames columns"], by_label: Float[Tensor, "clips frames columns"]
) -> Float[Tensor, "clips frames columns"]:
    """Log of the sum over all ways to a node, given those of the transitions into it: from a frame, a column before.

    Nodes of one diagonal, t + u, depend on the one before only. Clips lie innermost, so that all of a diagonal's nodes
    are one block of memory, and so are those that they are reached from.
    """
    clips, frames, columns = by_blank.shape
    diagonals = frames + columns - 1
    into = by_blank.new_full((diagonals, 2, columns, clips), -torch.inf)
    for way, found in enumerate((by_label, by_blank)):
        _by_node(into[:, way], frames).copy_(found)
    # A diagonal and a column more, in front: a start, from which the blank into (0, 0) leaves.
    sums = by_blank.new_full((diagonals + 1, columns + 1, clips), -torch.inf)
    sums[0, 1] = 0.0
    sources = sums[:-1].unfold(1, columns, 1).transpose(2, 3)
    for source, step, reached in zip(sources.unbind(), into.unbind(), sums[1:, 1:].unbind(), strict=True):
        torch.logaddexp(*(source + step).unbind(), out=reached)
    return _by_node(sums[1:, 1:], frames)


def _by_node(diagonals: Float[Tensor, "diagonals columns clips"], frames: int) -> Float[Tensor, "clips frames columns"]:
    """A view."""
    along, across, clip = diagonals.stride()
    shape = (diagonals.shape[2], frames, diagonals.shape[1])
    return diagonals.as_strided(shape, (clip, along, along + across), diagonals.storage_offset())
