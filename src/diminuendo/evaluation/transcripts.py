"""What a recogniser hears in clips, as text with times, and how much of it is wrong."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from lhotse import CutSet

from diminuendo.data.audio import Skipped
from diminuendo.data.batching import Batch, evaluation_batches, sorted_batches
from diminuendo.data.tokens import Tokens
from diminuendo.errors import UserError
from diminuendo.families import Model, family_of, model_inputs
from diminuendo.families.inputs import SAMPLING_RATE
from diminuendo.families.transducer import is_transducer
from diminuendo.profiling.count import evaluating
from diminuendo.tasks import ctc, transducer
from diminuendo.tasks.hypotheses import Hypothesis, log_add
from diminuendo.tasks.recognition import blank_of, frame_logits

SECONDS_PER_BATCH = 60.0


@dataclass(frozen=True)
class Recogniser:
    model: Model
    extractor: Any
    tokens: Tokens


@dataclass(frozen=True)
class Decoding:
    """How clips are decoded, with a beam of 1 greedily. lookahead: of a streaming model, in frames; None: its own."""

    beam: int = 1
    n_best: int = 1
    lookahead: int | None = None


def check_decoding(model: Model, decoding: Decoding) -> None:
    """UserError for what the model cannot do."""
    family = family_of(model)
    task = family.task_of(model)
    if task is None:
        raise UserError(
            f"MODEL is an encoder ({type(model).__name__}), which writes no text; make a recogniser of it with "
            "`diminuendo finetune`, or evaluate it with --probe"
        )
    if getattr(family.encoder(model).config, "add_adapter", False):
        raise UserError("MODEL has an adapter behind its encoder, whose frames are not counted here; give another")
    if decoding.n_best > decoding.beam:
        raise UserError(f"--n-best {decoding.n_best}: a beam of {decoding.beam} has fewer; give --beam too")
    if task == "tdt" and decoding.beam > 1:
        raise UserError("--beam: TDT is decoded greedily; leave --beam out")
    if decoding.lookahead is not None and not family.streams:
        raise UserError("--lookahead: MODEL is no streaming model, it hears whole clips; leave --lookahead out")


def lookahead_of(model: Model, decoding: Decoding) -> int:
    """Of a streaming model, in frames."""
    default: int = family_of(model).encoder(model).config.default_num_lookahead_tokens
    return default if decoding.lookahead is None else decoding.lookahead


@torch.no_grad()
def hypotheses(model: Model, extractor: Any, batch: Batch, decoding: Decoding) -> list[list[Hypothesis]]:
    """For each clip its best labellings, at most `n_best`, of the tokens' ids; in evaluation mode."""
    family = family_of(model)
    inputs: dict[str, Any] = model_inputs(extractor, batch.waveforms, batch.lengths)
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    if family.streams:
        inputs["num_lookahead_tokens"] = lookahead_of(model, decoding)
    counts = family.frame_lengths(model, batch.lengths).clamp(min=0)
    with evaluating(model):
        states = family.encoder(model)(**inputs).last_hidden_state
        if not is_transducer(model):
            log_probs = frame_logits(model, states).float().log_softmax(-1)
            if decoding.beam == 1:
                return [[one] for one in ctc.greedy(log_probs, counts, blank_of(model))]
            return ctc.prefix_beam_search(log_probs, counts, blank_of(model), decoding.beam, decoding.n_best)
        frames = model.encoder_projector(states)
        if decoding.beam == 1:
            return [[one] for one in transducer.greedy(model, frames, counts)[0]]
        return transducer.beam_search(model, frames, counts, decoding.beam, decoding.n_best)


def seconds_per_frame(model: Model) -> float:
    """Of the encoder's frames."""
    family, clip = family_of(model), 10 * SAMPLING_RATE
    lengths = family.frame_lengths(model, torch.tensor([clip, 2 * clip]))
    return 10.0 / float(lengths[1] - lengths[0])


@dataclass(frozen=True)
class Transcript:
    """text: of the best labelling; words: each with the second at which its first token was emitted."""

    id: str
    text: str
    words: tuple[tuple[str, float], ...]
    score: float
    others: tuple[tuple[str, float], ...] = ()
    """The next best texts, with their scores."""


def batches_of(recogniser: Recogniser, cuts: CutSet, skipped: Skipped | None = None) -> Iterator[Batch]:
    """Every usable clip once; those of a model whose front end is normed over time one by one, as it hears padding."""
    return evaluation_batches(cuts, _seconds_per_batch(recogniser), skipped=skipped)


def number_of_batches(recogniser: Recogniser, cuts: CutSet) -> int:
    """How many `batches_of` gives if no clip is unusable."""
    return sum(1 for _ in sorted_batches(cuts, _seconds_per_batch(recogniser)))


def _seconds_per_batch(recogniser: Recogniser) -> float:
    encoder = family_of(recogniser.model).encoder(recogniser.model)
    return 0.0 if getattr(encoder.config, "feat_extract_norm", None) == "group" else SECONDS_PER_BATCH


def transcripts(recogniser: Recogniser, batches: Iterable[Batch], decoding: Decoding) -> Iterator[Transcript]:
    """Of every clip of the batches."""
    model, tokens = recogniser.model, recogniser.tokens
    check_decoding(model, decoding)
    step = seconds_per_frame(model)
    for batch in batches:
        found = hypotheses(model, recogniser.extractor, batch, replace(decoding, n_best=decoding.beam))
        for cut, labellings in zip(batch.cuts, found, strict=True):
            best, *others = of_different_texts(tokens, labellings)[: decoding.n_best]
            rest = tuple((tokens.decode(other.tokens), other.score) for other in others)
            yield Transcript(cut.id, tokens.decode(best.tokens), timed_words(tokens, best, step), best.score, rest)


def of_different_texts(tokens: Tokens, labellings: Iterable[Hypothesis]) -> list[Hypothesis]:
    """The best labelling of every text, with the probability of all of them; the most probable text first."""
    found: dict[str, Hypothesis] = {}
    for one in labellings:
        text = tokens.decode(one.tokens)
        best = max(found.get(text, one), one, key=lambda labelling: labelling.score)
        score = log_add(found[text].score, one.score) if text in found else one.score
        found[text] = replace(best, score=score)
    return sorted(found.values(), key=lambda labelling: -labelling.score)


def timed_words(tokens: Tokens, hypothesis: Hypothesis, step: float) -> tuple[tuple[str, float], ...]:
    """The words of a labelling and when each began. step: seconds of a frame."""
    words = TimedWords(tokens, step)
    for token, frame in zip(hypothesis.tokens, hypothesis.frames, strict=True):
        words.add(token, frame)
    return tuple(words.found)


class TimedWords:
    """`found`: the words of the tokens so far and the second in which each began. step: seconds of a frame."""

    def __init__(self, tokens: Tokens, step: float) -> None:
        self.tokens, self.step = tokens, step
        self.found: list[tuple[str, float]] = []
        self._of_last: list[int] = []  # its tokens: what is before them need not be decoded again

    def add(self, token: int, frame: int) -> None:
        now = self.tokens.decode([*self._of_last, token]).split()
        if len(now) > min(1, len(self.found)):
            self.found.append((now[-1], round(frame * self.step, 3)))
            self._of_last = [token]
            return
        self._of_last.append(token)
        if now:
            self.found[-1] = (now[-1], self.found[-1][1])
