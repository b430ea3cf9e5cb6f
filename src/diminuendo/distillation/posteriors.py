"""Distillation of a recogniser's posteriors: of CTC's frames, and of a transducer's lattice or best alignment.

A transducer's posteriors are a distribution for every node (frame, labels emitted so far) of a lattice of T x (U + 1),
too many to keep for two models. Both losses on them need fewer numbers: three classes of every node, or whole
distributions of T + U nodes. What looks at the lattice takes log-probabilities of blank and of the next label, of shape
[batch, frames, labels + 1], the next label's -inf where none is left (tasks/transducer_loss.py makes them). All losses
are Kullback-Leibler divergences KL(teacher || student) in nats, and teachers get no gradients.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diminuendo.distillation.hidden import valid_frames

Posteriors = Literal["lattice", "path"]
"""Of a transducer: all nodes of the lattice, collapsed, or those of the teacher's best alignment alone."""

# A log-probability below those of all alignments, which double precision still adds others to.
IMPOSSIBLE = -1e9


def ctc_posteriors(
    student_logits: Float[Tensor, "batch frames vocabulary"],
    teacher_logits: Float[Tensor, "batch frames vocabulary"],
    frame_lengths: Int[Tensor, " batch"],
    blank: int,
    *,
    temperature: float = 1.0,
    label_weight: float = 1.0,
) -> dict[str, Float[Tensor, ""]]:
    """`loss`, and its parts: `blank`, whether a frame is blank, and `labels`, which label it is if it is not.

    With b and c the teacher's and student's probabilities of blank, and p and q their distributions over labels once
    blank is ruled out, a frame's KL is KL((b, 1 - b) || (c, 1 - c)) + (1 - b) KL(p || q). CTC's teachers are nearly
    certain of blank in most frames, so in the mean over frames what they know of labels counts little. Here (the form
    is our own) the first term is averaged over frames, the second over what is not blank:

        blank  = mean of KL((b, 1 - b) || (c, 1 - c)),      labels = sum of (1 - b) KL(p || q) / max(1, sum of (1 - b)),
        loss   = temperature² (blank + label_weight labels)

    The 1 is a whole frame: of a batch of silence no labels are learned. Logits are divided by the temperature, whose
    square keeps the gradients' size (Hinton et al. 2015, arXiv 1503.02531); the parts are with neither factor.
    """
    valid = valid_frames(frame_lengths, student_logits.shape[1])
    log_c, log_not_c, log_q = _blank_apart(student_logits[valid].float() / temperature, blank)
    log_b, log_not_b, log_p = _blank_apart(teacher_logits.detach()[valid].float() / temperature, blank)
    by_blank = (_divergence(log_b, log_c) + _divergence(log_not_b, log_not_c)).mean()
    speech = log_not_b.exp()
    labels = (speech * _divergence(log_p, log_q).sum(-1)).sum() / speech.sum().clamp(min=1.0)
    return {"loss": temperature**2 * (by_blank + label_weight * labels), "blank": by_blank, "labels": labels}


def _blank_apart(logits: Float[Tensor, "frames vocabulary"], blank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of blank, of not blank, and of each label if it is not blank."""
    labels = torch.cat([logits[:, :blank], logits[:, blank + 1 :]], dim=1)
    odds = logits[:, blank] - labels.logsumexp(1)
    return F.logsigmoid(odds), F.logsigmoid(-odds), labels.log_softmax(1)


def _divergence(log_p: Float[Tensor, "*shape"], log_q: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The terms of KL(p || q): 0 where p is 0, also where q is."""
    return torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0.0)


def collapsed_lattice(
    student: tuple[Float[Tensor, "batch frames columns"], Float[Tensor, "batch frames columns"]],
    teacher: tuple[Float[Tensor, "batch frames columns"], Float[Tensor, "batch frames columns"]],
    frame_lengths: Int[Tensor, " batch"],
    target_lengths: Int[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """KL of blank, next label and the rest of the vocabulary, averaged over all nodes within lengths.

    Panchapagesan et al., ICASSP 2021, arXiv 2011.06110. `student` and `teacher` are their (blank, next label)
    log-probabilities. The rest is what these leave, known to the precision of their type: a smaller one counts as its
    epsilon, and has no gradient of its own.
    """
    frames, columns = student[0].shape[1:]
    nodes = valid_frames(frame_lengths, frames)[:, :, None] & valid_frames(target_lengths + 1, columns)[:, None]
    pairs = zip(_with_rest(teacher, nodes), _with_rest(student, nodes), strict=True)
    return torch.stack([_divergence(p.detach(), q) for p, q in pairs]).sum(0).mean()


def _with_rest(lattice: tuple[Tensor, Tensor], nodes: Bool[Tensor, "batch frames columns"]) -> tuple[Tensor, ...]:
    blanks, labels = (log_probs[nodes] for log_probs in lattice)
    either = torch.logaddexp(blanks, labels).clamp(max=-torch.finfo(blanks.dtype).eps)
    return blanks, labels, log1mexp(either)


def log1mexp(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log(1 - exp(x)) for x < 0, by whichever form does not cancel (Mächler 2012, "Accurately computing...")."""
    return torch.where(x > -0.6931, (-x.expm1()).log(), (-x.exp()).log1p())


class Path(NamedTuple):
    """The nodes of an alignment in order, as indices of a lattice; a clip of T frames and U labels has T + U of them.

    Behind a clip's own, where `valid` is False, indices are 0.
    """

    frames: Int[Tensor, "batch nodes"]
    columns: Int[Tensor, "batch nodes"]
    valid: Bool[Tensor, "batch nodes"]


def along(
    logits: Float[Tensor, "batch frames columns vocabulary"], path: Path
) -> Float[Tensor, "batch nodes vocabulary"]:
    """Of each clip the logits of its path's nodes."""
    return logits[torch.arange(len(logits), device=logits.device)[:, None], path.frames, path.columns]


@torch.no_grad()
def best_path(
    blanks: Float[Tensor, "batch frames columns"],
    labels: Float[Tensor, "batch frames columns"],
    frame_lengths: Int[Tensor, " batch"],
    target_lengths: Int[Tensor, " batch"],
) -> Path:
    """The most probable alignment of each clip, of `frames + columns - 1` nodes with padding; of equal ones any.

    Viterbi's search, a column at a time: what reaches frame t of column u emitted label u - 1 in some frame until t,
    and blanks of column u from there on, so that a running maximum over frames finds it.
    """
    blanks, labels = (log_probs.double().clamp(min=IMPOSSIBLE) for log_probs in (blanks, labels))
    clips, frames, columns = blanks.shape
    until = blanks.cumsum(1) - blanks
    best, emitted = until[..., 0], []
    for u in range(1, columns):
        best, when = (best + labels[..., u - 1] - until[..., u]).cummax(1)
        best = best + until[..., u]
        emitted.append(when)
    # Backwards: the frame of a label bounds that of the label before.
    frame, found = frame_lengths - 1, []
    for u in range(columns - 1, 0, -1):
        frame = torch.where(u <= target_lengths, emitted[u - 1].gather(1, frame[:, None])[:, 0], frame)
        found.append(frame)
    emission = torch.stack(found[::-1], 1) if found else frame.new_zeros(clips, 0)
    # Node i is (t, u) with t + u = i. A label behind the clip's own has its last frame, and so leaves no node of it.
    nodes = torch.arange(frames + columns - 1, device=emission.device)
    left_at = emission + nodes[: columns - 1]
    column = (left_at[:, None] < nodes[:, None]).sum(-1)
    valid = nodes < (frame_lengths + target_lengths)[:, None]
    return Path((nodes - column).where(valid, 0), column.where(valid, 0), valid)


def one_best_path(
    student_logits: Float[Tensor, "batch nodes vocabulary"],
    teacher_logits: Float[Tensor, "batch nodes vocabulary"],
    valid: Bool[Tensor, "batch nodes"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """KL of whole distributions along the teacher's `best_path`, averaged over its nodes.

    Kurata and Saon, Interspeech 2020. Logits are those of the path's nodes alone. The loss is multiplied by
    temperature², as in `ctc_posteriors`.
    """
    log_p = (teacher_logits.detach()[valid].float() / temperature).log_softmax(-1)
    log_q = (student_logits[valid].float() / temperature).log_softmax(-1)
    return temperature**2 * _divergence(log_p, log_q).sum(-1).mean()
