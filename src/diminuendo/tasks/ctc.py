"""CTC (Graves et al. 2006): loss, greedy decoding, and a prefix beam search that sums over alignments.

Decoders take natural log-probabilities, not logits. A token's frame is where its run of equal labels starts: with
greedy decoding on the most probable path of all, with beam search on the most probable path of that labelling.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from heapq import nlargest
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from diminuendo.tasks.hypotheses import Hypothesis, check_beam, log_add

FLAT_BLANK = 0.1  # of a label's time in a flat start

Prefixes = dict[tuple[int, ...], tuple[float, float]]
"""Of each labelling so far: log-probability of its paths that end in blank, and of those that end in its last token."""


def ctc_loss(
    logits: Float[Tensor, "batch frames vocabulary"],
    lengths: Int[Tensor, " batch"],
    targets: Int[Tensor, "batch labels"],
    target_lengths: Int[Tensor, " batch"],
    blank: int,
) -> Float[Tensor, ""]:
    """-log p(targets) in nats, the mean over clips: neither divided by a clip's frames nor by its labels.

    The softmax is in 32 bits whatever the logits are. Infinite if a clip has fewer frames than `frames_needed`.
    """
    log_probs = logits.float().log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(log_probs, targets, lengths, target_lengths, blank, reduction="none").mean()


def flat_alignment(
    targets: Int[Tensor, "batch labels"],
    target_lengths: Int[Tensor, " batch"],
    lengths: Int[Tensor, " batch"],
    blank: int,
) -> Int[Tensor, "batch frames"]:
    """For every frame the label that it has if all of a clip's labels are equally long; -100 where a clip is over.

    Where its label has just begun a frame is blank, so that equal neighbours are told apart. The frames of a clip
    without labels are blank.
    """
    frames = torch.arange(int(lengths.max()), device=lengths.device)
    place = (frames + 0.5) * (target_lengths / lengths.clamp(min=1))[:, None]
    labels = F.pad(targets, (0, 1), value=blank)  # for clips without any
    found = labels.gather(1, place.long().clamp(max=targets.shape[1]))
    found = found.masked_fill((place.frac() < FLAT_BLANK) | (target_lengths == 0)[:, None], blank)
    return found.masked_fill(frames >= lengths[:, None], -100)


def frames_needed(targets: Sequence[int]) -> int:
    """The fewest frames that can spell one clip's targets: one a label, and a blank between equal neighbours."""
    return len(targets) + sum(first == second for first, second in pairwise(targets))


def greedy(
    log_probs: Float[Tensor, "batch frames vocabulary"],
    lengths: Int[Tensor, " batch"],
    blank: int,
    last: Int[Tensor, " batch"] | None = None,
) -> list[Hypothesis]:
    """The most probable path of each clip, repeats collapsed and then blanks left out; the score is the path's.

    Frames may come in chunks. last: the most probable symbols of the frames before the first, which go on in it.
    """
    best, labels = log_probs.max(-1)
    valid = torch.arange(labels.shape[1], device=labels.device) < lengths.to(labels.device)[:, None]
    first = torch.full_like(labels[:, :1], blank) if last is None else last[:, None]
    before = torch.cat([first, labels[:, :-1]], 1)
    starts = valid & (labels != blank) & (labels != before)
    scores = best.masked_fill(~valid, 0.0).sum(1, dtype=torch.float32).tolist()
    found = []
    for clip, score in enumerate(scores):
        frames = starts[clip].nonzero()[:, 0]
        found.append(Hypothesis(tuple(labels[clip, frames].tolist()), tuple(frames.tolist()), score))
    return found


def prefix_beam_search(
    log_probs: Float[Tensor, "batch frames vocabulary"],
    lengths: Int[Tensor, " batch"],
    blank: int,
    beam: int,
    n_best: int,
) -> list[list[Hypothesis]]:
    """At most `n_best` different labellings of each clip, most probable first (Hannun et al. 2014, arXiv 1408.2873).

    The beam is all that is pruned. Labels that continue a prefix are those `beam` + 1 that are most probable in the
    frame, which loses nothing: at most one of them is the prefix's own last, and the others, `beam` prefixes, come
    before whatever a less probable label would make. UserError unless 1 <= n_best <= beam.
    """
    check_beam(beam, n_best)
    log_probs = log_probs.detach().cpu().double()
    without_blank = log_probs.index_fill(-1, torch.tensor(blank), -math.inf)
    likely = without_blank.topk(min(beam + 1, log_probs.shape[-1] - 1)).indices
    found: list[list[Hypothesis]] = []
    for clip, length in enumerate(lengths.tolist()):
        prefixes: Prefixes = {(): (0.0, -math.inf)}
        for row, labels in zip(log_probs[clip, :length].tolist(), likely[clip, :length].tolist(), strict=True):
            prefixes = _step(prefixes, row, labels, blank, beam)
        scores = {tokens: log_add(*ends) for tokens, ends in prefixes.items()}
        kept = nlargest(n_best, scores, key=scores.__getitem__)
        frames = _most_probable_starts(log_probs[clip, :length], kept, blank)
        found.append([Hypothesis(tokens, at, scores[tokens]) for tokens, at in zip(kept, frames, strict=True)])
    return found


def _step(prefixes: Prefixes, row: list[float], labels: list[int], blank: int, beam: int) -> Prefixes:
    """The most probable prefixes one frame later; `row` has log-probabilities, `labels` the tokens to continue with."""
    totals = {prefix: log_add(*ends) for prefix, ends in prefixes.items()}
    continued = defaultdict(set)  # labels by which prefixes of the beam continue others of it
    stepped: Prefixes = {}
    for prefix, (_, in_token) in prefixes.items():
        if prefix:
            parent, last = prefix[:-1], prefix[-1]
            in_token += row[last]
            if parent in prefixes:
                continued[parent].add(last)
                # A token equal to the one before it is a new one only after a blank.
                before = prefixes[parent][0] if parent[-1:] == (last,) else totals[parent]
                in_token = log_add(in_token, before + row[last])
        stepped[prefix] = totals[prefix] + row[blank], in_token
    scored = [(log_add(*ends), prefix, -1) for prefix, ends in stepped.items()]
    for prefix, (in_blank, _) in prefixes.items():
        total, last, known = totals[prefix], prefix[-1] if prefix else blank, continued[prefix]
        scored += [
            ((in_blank if label == last else total) + row[label], prefix, label)
            for label in labels
            if label not in known
        ]
    kept = nlargest(beam, scored)
    return {
        (prefix if label < 0 else (*prefix, label)): (stepped[prefix] if label < 0 else (-math.inf, score))
        for score, prefix, label in kept
        if score > -math.inf
    }


def _most_probable_starts(
    log_probs: Float[Tensor, "frames vocabulary"], labellings: list[tuple[int, ...]], blank: int
) -> list[tuple[int, ...]]:
    """The frame at which each token starts on the most probable path of its labelling (Viterbi).

    The states of a labelling are its tokens with blanks before, between and after them.
    """
    width = 2 * max(map(len, labellings)) + 1
    states = torch.full((len(labellings), width), blank)
    for row, tokens in enumerate(labellings):
        states[row, 1 : 2 * len(tokens) : 2] = torch.tensor(tokens, dtype=torch.long)
    emitted = log_probs[:, states]
    skippable = torch.zeros_like(states, dtype=torch.bool)  # a blank, between different tokens, may be left out
    skippable[:, 2:] = (states[:, 2:] != blank) & (states[:, 2:] != states[:, :-2])
    reached = torch.full(states.shape, -math.inf, dtype=log_probs.dtype)
    reached[:, 0] = 0.0  # one state before the first frame, from which a path enters the first two
    came = []
    for row in emitted:
        one, two = (F.pad(reached, (skip, 0), value=-math.inf)[:, :width] for skip in (1, 2))
        reached, moved = torch.stack([reached, one, two.masked_fill(~skippable, -math.inf)]).max(0)
        reached = reached + row
        came.append(moved)
    steps = torch.stack(came, 1).tolist() if came else [[] for _ in labellings]
    found = []
    for tokens, at, moves in zip(labellings, reached.tolist(), steps, strict=True):
        last = 2 * len(tokens)  # the blank after the last token, or that token
        found.append(_starts(moves, last - int(last > 0 and at[last - 1] > at[last])))
    return found


def _starts(moves: list[list[int]], state: int) -> tuple[int, ...]:
    """Frames at which the path that ends in `state` enters a token, a state of odd number; `moves` is by frame."""
    frames = []
    for frame in range(len(moves) - 1, -1, -1):
        move = moves[frame][state]
        if move and state % 2:
            frames.append(frame)
        state -= move
    return tuple(reversed(frames))
