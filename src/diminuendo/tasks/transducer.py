"""RNN-T (Graves 2012, arXiv 1211.3711) and TDT (Xu et al. 2023, arXiv 2304.06795): what training needs, and decoding.

A model is laid out as transformers' Parakeet is: `decoder` (the predictor: `embedding`, `lstm`, `decoder_projector`,
started with the blank; or a stateless one, modules/transducer.py) and `joint(decoder_hidden_states=,
encoder_hidden_states=)`, whose logits are of the vocabulary and, for TDT, of `config.durations` behind it. Frames are
what `encoder_projector` gives. Sizes are the modules' own: a compressed model's configuration has the old ones.
"""

import math
from dataclasses import dataclass, field, replace
from heapq import nlargest
from operator import itemgetter
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from diminuendo.errors import UserError
from diminuendo.modules.transducer import is_stateless
from diminuendo.tasks.hypotheses import Hypothesis, check_beam, log_add

WINDOW = 4  # frames that greedy decoding looks at at once: about as many as lie between two tokens of speech


@dataclass(frozen=True)
class Predicted:
    """The predictor after one label for each row: a clip, or a hypothesis of one."""

    output: Float[Tensor, "rows joint"]
    states: tuple[Shaped[Tensor, "layers rows ..."], ...]
    """Of an LSTM its hidden states and cells, [layers, rows, width]; of a stateless predictor the labels, [1, rows]."""

    def at(self, rows: Int[Tensor, " chosen"]) -> "Predicted":
        return Predicted(self.output[rows], tuple(state[:, rows] for state in self.states))

    def put(self, rows: Int[Tensor, " chosen"], new: "Predicted") -> "Predicted":
        pairs = zip(self.states, new.states, strict=True)
        states = tuple(state.index_copy(1, rows, other) for state, other in pairs)
        return Predicted(self.output.index_copy(0, rows, new.output), states)

    def and_also(self, new: "Predicted") -> "Predicted":
        states = tuple(torch.cat(pair, 1) for pair in zip(self.states, new.states, strict=True))
        return Predicted(torch.cat([self.output, new.output]), states)


@dataclass(frozen=True)
class State:
    """Where greedy decoding stands after a chunk of frames."""

    predicted: Predicted
    ahead: tuple[int, ...]
    """Frames of the next chunk that a clip's last duration jumps over; 0 unless the model is a TDT."""


def predict(model: Any, targets: Int[Tensor, "batch labels"]) -> Float[Tensor, "batch labels+1 joint"]:
    """The predictor's output before the first label and after each of them. The blank is put in front."""
    start = targets.new_full((len(targets), 1), model.config.blank_token_id)
    output: Tensor = model.decoder(torch.cat([start, targets], 1))
    return output


def joint_logits(
    model: Any, frames: Float[Tensor, "batch frames joint"], predicted: Float[Tensor, "batch labels+1 joint"]
) -> Float[Tensor, "batch frames labels+1 vocabulary"]:
    """Of every frame after every number of labels; a TDT has its durations behind the vocabulary."""
    logits: Tensor = model.joint(decoder_hidden_states=predicted[:, None], encoder_hidden_states=frames[:, :, None])
    return logits


def start(model: Any, clips: int) -> State:
    """Before the first frame."""
    device = model.decoder.embedding.weight.device
    blanks = torch.full((clips,), model.config.blank_token_id, device=device)
    return State(_after(model, blanks, None), (0,) * clips)


def _after(model: Any, labels: Int[Tensor, " rows"], before: Predicted | None) -> Predicted:
    """One step of the predictor. Its own cache is as wide as the configuration says, so it is not used."""
    decoder = model.decoder
    if is_stateless(model):
        last = torch.full_like(labels, model.config.blank_token_id) if before is None else before.states[0][0]
        return Predicted(decoder.after(last[:, None], labels[:, None])[:, 0], (labels[None],))
    output, states = decoder.lstm(decoder.embedding(labels[:, None]), None if before is None else before.states)
    return Predicted(decoder.decoder_projector(output)[:, 0], states)


def _symbols(model: Any, max_symbols: int | None) -> int:
    if max_symbols is not None and max_symbols < 1:
        raise UserError(f"max_symbols {max_symbols}: a frame that may emit nothing; give 1 or more")
    return max_symbols or int(model.config.max_symbols_per_step)


def _durations(model: Any) -> list[int] | None:
    """The frames that a TDT's durations stand for; None of an RNN-T."""
    durations = getattr(model.config, "durations", None)
    return None if durations is None else list(durations)


@torch.no_grad()
def greedy(
    model: Any,
    frames: Float[Tensor, "batch frames joint"],
    lengths: Int[Tensor, " batch"],
    max_symbols: int | None = None,
    state: State | None = None,
) -> tuple[list[Hypothesis], State]:
    """The most probable symbol at every step, as transformers' `generate` has it, clips side by side.

    All frames may come at once, or in chunks: each with the state that the one before gave back, `lengths` being each
    clip's frames in the chunk. What is found is of the chunk alone: its tokens, frames counted from its first one.

    A frame that has emitted `max_symbols` labels (None: the configuration's number) is left. So is a TDT's if all of
    their durations were 0, which `generate` does not limit. A TDT's blank takes at least one frame. Scores are the sum
    of the log-probabilities of the symbols, for a TDT also of their durations, that were most probable.

    The predictor runs for those clips that emit a label alone. Clips do not wait for each other: each looks for its
    next label from its own frame on, a window at a time (after Bataev et al. 2024, arXiv 2406.06220).
    """
    limit = _symbols(model, max_symbols)
    state = state or start(model, len(frames))
    predicted = state.predicted
    walks = [
        _Walk(model.config.blank_token_id, limit, end, at)
        for end, at in zip(lengths.tolist(), state.ahead, strict=True)
    ]
    while waiting := [clip for clip, walk in enumerate(walks) if walk.at < walk.end]:
        rows = torch.tensor(waiting, device=frames.device)
        first = torch.tensor([walks[clip].at for clip in waiting], device=frames.device)
        window = first[:, None] + torch.arange(WINDOW, device=frames.device)
        seen = frames[rows[:, None], window.clamp(max=frames.shape[1] - 1)]
        symbols = zip(*_most_probable(model, seen, predicted.output[rows]), strict=True)
        labels = {clip: walks[clip].to_next_label(*found) for clip, found in zip(waiting, symbols, strict=True)}
        emitted = {clip: label for clip, label in labels.items() if label is not None}
        if emitted:
            rows = torch.tensor(list(emitted), device=frames.device)
            new = torch.tensor(list(emitted.values()), device=frames.device)
            predicted = predicted.put(rows, _after(model, new, predicted.at(rows)))
    found = [Hypothesis(tuple(walk.tokens), tuple(walk.frames), walk.score) for walk in walks]
    return found, State(predicted, tuple(walk.at - walk.end for walk in walks))


def _most_probable(
    model: Any, seen: Float[Tensor, "rows window joint"], predicted: Float[Tensor, "rows joint"]
) -> tuple[list[list[int]], list[list[float]], list[list[int]]]:
    """Symbols, log-probabilities and steps in frames, by row and frame of its window."""
    logits = joint_logits(model, seen, predicted[:, None])[:, :, 0].float()
    vocabulary = model.decoder.embedding.num_embeddings
    scores, symbols = logits[..., :vocabulary].log_softmax(-1).max(-1)
    blank = symbols == model.config.blank_token_id
    durations = _durations(model)
    if durations is None:
        steps = blank.long()
    else:
        of_duration, chosen = logits[..., vocabulary:].log_softmax(-1).max(-1)
        scores = scores + of_duration
        steps = torch.tensor(durations, device=chosen.device)[chosen]
        steps = torch.where(blank, steps.clamp(min=1), steps)
    return symbols.tolist(), scores.tolist(), steps.tolist()


@dataclass
class _Walk:
    """One clip's way over its frames."""

    blank: int
    limit: int
    end: int
    at: int
    at_frame: int = 0  # labels that this frame has emitted
    score: float = 0.0
    tokens: list[int] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)

    def to_next_label(self, symbols: list[int], scores: list[float], steps: list[int]) -> int | None:
        """Over blanks up to a label, behind which nothing of the window is valid; None if it ended before."""
        first = self.at
        while self.at < min(self.end, first + len(symbols)):
            i = self.at - first
            self.score += scores[i]
            emitted = symbols[i] != self.blank
            if emitted:
                self.tokens.append(symbols[i])
                self.frames.append(self.at)
            self._move(steps[i], emitted)
            if emitted:
                return symbols[i]
        return None

    def _move(self, step: int, emitted: bool) -> None:
        self.at_frame += emitted
        if step == 0 and self.at_frame == self.limit:
            step = 1
        if step:
            self.at_frame = 0
        self.at += step


@dataclass(frozen=True)
class _Kept:
    """A labelling in the beam: log-probabilities of all its paths and of the best, whose frames they are."""

    total: float
    best: float
    frames: tuple[int, ...]
    row: int
    """Of the predictor's outputs."""

    def with_paths_of(self, other: "_Kept") -> "_Kept":
        better = max(self, other, key=lambda kept: kept.best)
        return _Kept(log_add(self.total, other.total), better.best, better.frames, better.row)

    def then(self, score: float) -> "_Kept":
        return _Kept(self.total + score, self.best + score, self.frames, self.row)


_Beam = dict[tuple[int, ...], _Kept]
_Candidate = tuple[float, float, int, tuple[int, ...], _Kept]
"""Log-probability with and of a label, that label, and what it follows."""


@torch.no_grad()
def beam_search(
    model: Any,
    frames: Float[Tensor, "batch frames joint"],
    lengths: Int[Tensor, " batch"],
    beam: int,
    n_best: int,
    max_symbols: int | None = None,
) -> list[list[Hypothesis]]:
    """At most `n_best` different labellings of each clip, most probable first, with an RNN-T.

    Time-synchronous (described in Saon et al. 2020, "Alignment-length synchronous decoding for RNN transducer"): in
    every frame hypotheses grow by a label at a time, at most `max_symbols` (None: the configuration's number), and
    after any number of them a blank ends the frame. Equal labellings become one by adding their probabilities, so a
    score is the sum over all paths that the beam kept; frames are the most probable path's. A hypothesis that is
    already less probable than the `beam` best that have ended the frame is not followed.

    Predictor and joint network run for all hypotheses of all clips together. UserError for a TDT, and unless
    1 <= n_best <= beam.
    """
    check_beam(beam, n_best)
    if _durations(model) is not None:
        raise UserError("beam search is for RNN-T, this model is a TDT (it has durations); decode it greedily")
    search = _Search(model, beam, _symbols(model, max_symbols), start(model, len(frames)).predicted)
    counts = lengths.tolist()
    beams: dict[int, _Beam] = {clip: {(): _Kept(0.0, 0.0, (), clip)} for clip in range(len(frames))}
    for frame in range(max(counts, default=0)):
        running = {clip: beams[clip] for clip, count in enumerate(counts) if frame < count}
        beams |= search.step(running, frames[:, frame], frame)
    return [
        [Hypothesis(tokens, kept.frames, kept.total) for tokens, kept in _top(beams[clip], n_best).items()]
        for clip in range(len(frames))
    ]


def _top(beam: _Beam, size: int) -> _Beam:
    return dict(nlargest(size, beam.items(), key=lambda item: item[1].total))


@dataclass
class _Search:
    model: Any
    beam: int
    limit: int
    predicted: Predicted  # of all hypotheses; each knows its row

    def step(self, beams: dict[int, _Beam], seen: Float[Tensor, "batch joint"], frame: int) -> dict[int, _Beam]:
        """The beams of these clips one frame later."""
        growing = self._renumbered(beams)
        ended: dict[int, _Beam] = {clip: {} for clip in beams}
        for emitted in range(self.limit + 1):
            hypotheses = [(clip, tokens, kept) for clip, grown in growing.items() for tokens, kept in grown.items()]
            if not hypotheses:
                break
            continued: dict[int, list[_Candidate]] = {clip: [] for clip in growing}
            scored = zip(hypotheses, *self._continuations(hypotheses, seen), strict=True)
            for (clip, tokens, kept), blank, scores, labels in scored:
                _add(ended[clip], tokens, kept.then(blank))
                found = zip(scores, labels, strict=True)
                continued[clip] += [(kept.total + score, score, label, tokens, kept) for score, label in found]
            if emitted < self.limit:
                growing = self._grow(continued, ended, frame)
        return {clip: _top(found, self.beam) for clip, found in ended.items()}

    def _renumbered(self, beams: dict[int, _Beam]) -> dict[int, _Beam]:
        """With the predictor's outputs of these hypotheses alone."""
        hypotheses = [(clip, tokens, kept) for clip, beam in beams.items() for tokens, kept in beam.items()]
        self.predicted = self.predicted.at(self._tensor([kept.row for _, _, kept in hypotheses]))
        renumbered: dict[int, _Beam] = {clip: {} for clip in beams}
        for row, (clip, tokens, kept) in enumerate(hypotheses):
            renumbered[clip][tokens] = replace(kept, row=row)
        return renumbered

    def _continuations(
        self, hypotheses: list[tuple[int, tuple[int, ...], _Kept]], seen: Float[Tensor, "batch joint"]
    ) -> tuple[list[float], list[list[float]], list[list[int]]]:
        """Log-probabilities of blank, and of those labels that can be among the best `beam`, which follow."""
        clips = self._tensor([clip for clip, _, _ in hypotheses])
        rows = self._tensor([kept.row for _, _, kept in hypotheses])
        logits = joint_logits(self.model, seen[clips, None], self.predicted.output[rows, None])[:, 0, 0]
        log_probs = logits.float().log_softmax(-1)
        blank = self.model.config.blank_token_id
        blanks = log_probs[:, blank].tolist()
        log_probs[:, blank] = -math.inf
        scores, labels = log_probs.topk(min(self.beam, log_probs.shape[1] - 1))
        return blanks, scores.tolist(), labels.tolist()

    def _grow(self, continued: dict[int, list[_Candidate]], ended: dict[int, _Beam], frame: int) -> dict[int, _Beam]:
        """The best of these by one label, unless they cannot be among the best that end the frame."""
        chosen = []
        for clip, candidates in continued.items():
            best = nlargest(self.beam, (kept.total for kept in ended[clip].values()))
            least = best[-1] if len(best) == self.beam else -math.inf
            likely = [candidate for candidate in candidates if candidate[0] > least]
            chosen += [(clip, candidate) for candidate in nlargest(self.beam, likely, key=itemgetter(0))]
        if not chosen:
            return {}
        parents = self._tensor([kept.row for _, (_, _, _, _, kept) in chosen])
        labels = self._tensor([label for _, (_, _, label, _, _) in chosen])
        first = len(self.predicted.output)
        self.predicted = self.predicted.and_also(_after(self.model, labels, self.predicted.at(parents)))
        grown: dict[int, _Beam] = {clip: {} for clip in continued}
        for row, (clip, (total, score, label, tokens, kept)) in enumerate(chosen, first):
            grown[clip][*tokens, label] = _Kept(total, kept.best + score, (*kept.frames, frame), row)
        return grown

    def _tensor(self, values: list[int]) -> Int[Tensor, " values"]:
        return torch.tensor(values, device=self.predicted.output.device)


def _add(beam: _Beam, tokens: tuple[int, ...], kept: _Kept) -> None:
    beam[tokens] = beam[tokens].with_paths_of(kept) if tokens in beam else kept
