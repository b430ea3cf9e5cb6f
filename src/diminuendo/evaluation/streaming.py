"""What a streaming recogniser hears while audio still comes, how long a sound waits for it, and what that computes."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from lhotse.cut import Cut
from torch import Tensor

from diminuendo.data.audio import BadAudio, Skipped, load_waveform
from diminuendo.errors import UserError
from diminuendo.evaluation.transcripts import (
    Decoding,
    Recogniser,
    TimedWords,
    Transcript,
    check_decoding,
    lookahead_of,
    seconds_per_frame,
)
from diminuendo.families import Model, family_of
from diminuendo.families.inputs import SAMPLING_RATE
from diminuendo.families.streaming import EncoderStream, FeatureStream
from diminuendo.families.transducer import is_transducer
from diminuendo.tasks import ctc, transducer
from diminuendo.tasks.hypotheses import Hypothesis
from diminuendo.tasks.recognition import blank_of, frame_logits

Samples = Float[Tensor, " samples"]


@dataclass(frozen=True)
class Heard:
    """text: of all audio so far; words: each with the second at which its first token was emitted.

    seconds: of audio that has come. final: nothing will change any more. Until then the last word may grow.
    """

    text: str
    words: tuple[tuple[str, float], ...]
    score: float
    seconds: float
    final: bool


def check_streaming(model: Model, decoding: Decoding) -> None:
    """UserError for a model that cannot stream, and for a decoding that cannot be while audio comes."""
    if decoding.beam > 1 or decoding.n_best > 1:
        raise UserError("--streaming: a stream is decoded greedily, to one text; leave --beam and --n-best out")
    check_decoding(model, decoding)
    if not family_of(model).streams:
        raise UserError(
            f"--streaming: MODEL is no streaming model ({type(model).__name__}), it hears whole clips; leave "
            "--streaming out"
        )


class Stream:
    """One utterance of any length, heard as it comes: what is found is what `transcripts` finds in the whole of it.

    Decoding is greedy, and lookahead that of the decoding. The model is left in evaluation mode. UserError for one
    that cannot stream.

        stream = Stream(recogniser)
        for samples in microphone:  # of 16 kHz, within [-1, 1], in chunks of any size
            print(stream.push(samples).text)
        print(stream.finish().text)
    """

    def __init__(self, recogniser: Recogniser, decoding: Decoding | None = None) -> None:
        decoding = decoding or Decoding()
        check_streaming(recogniser.model, decoding)
        model = recogniser.model.eval()
        family = family_of(model)
        assert family.features is not None, "it reads waveforms"
        encoder = family.encoder(model)
        self.made_of = family.features(encoder.config)
        self.model, self.tokens = model, recogniser.tokens
        self.lookahead = lookahead_of(model, decoding)
        self.features = FeatureStream(recogniser.extractor)
        self.encoder = EncoderStream(encoder, self.made_of, self.lookahead)
        self.words = TimedWords(recogniser.tokens, seconds_per_frame(model))
        self.samples_per_frame = self.made_of.stacked * recogniser.extractor.hop_length
        self.samples, self.frames = 0, 0
        self.ids: list[int] = []
        self.score = 0.0
        self._decoder: Any = None  # of a transducer its state, of CTC the last frame's symbol
        self._heard = Heard("", (), 0.0, 0.0, final=False)

    @torch.no_grad()
    def push(self, samples: Any) -> Heard:
        """What is heard with these samples more. They are floats, in anything that has one dimension."""
        chunk = self._checked(samples)
        self.samples += len(chunk)
        return self._hear(self.encoder.push(self.features.push(chunk)))

    @torch.no_grad()
    def finish(self) -> Heard:
        """What is heard when all audio has come: the text of the whole utterance."""
        self._check_not_over()
        rest = self.features.finish()
        self._hear(self.encoder.push(rest))
        return self._hear(self.encoder.finish(), final=True)

    def _checked(self, samples: Any) -> Samples:
        self._check_not_over()
        chunk = torch.as_tensor(samples)
        if chunk.dim() != 1 or not chunk.is_floating_point():
            raise UserError(
                f"a chunk of audio has {chunk.dim()} dimensions of {str(chunk.dtype).removeprefix('torch.')}; expected "
                "one channel of floats within [-1, 1]; divide 16-bit integers by 32768"
            )
        return chunk.detach().float().cpu()

    def _check_not_over(self) -> None:
        if self._heard.final:
            raise UserError("this utterance has been finished; start another Stream for the next one")

    def _hear(self, chunks: Iterable[Float[Tensor, "1 frames dim"]], *, final: bool = False) -> Heard:
        text, words, known = self._heard.text, self._heard.words, len(self.ids)
        for states in chunks:
            new = self._decode(states)
            for token, frame in zip(new.tokens, new.frames, strict=True):
                self.words.add(token, self.frames + frame)
            self.ids += new.tokens
            self.score += new.score
            self.frames += states.shape[1]
        if len(self.ids) > known:
            text, words = self.tokens.decode(self.ids), tuple(self.words.found)
        self._heard = Heard(text, words, self.score, self.samples / SAMPLING_RATE, final)
        return self._heard

    def _decode(self, states: Float[Tensor, "1 frames dim"]) -> Hypothesis:
        counts = torch.tensor([states.shape[1]], device=states.device)
        if is_transducer(self.model):
            frames = self.model.encoder_projector(states)
            (found,), self._decoder = transducer.greedy(self.model, frames, counts, state=self._decoder)
            return found
        log_probs = frame_logits(self.model, states).float().log_softmax(-1)
        (found,) = ctc.greedy(log_probs, counts, blank_of(self.model), self._decoder)
        self._decoder = log_probs[:, -1].max(-1).indices
        return found


def latency(stream: Stream, push: int) -> int:
    """Samples that a sound waits at the longest until its frame of the encoder is there, if computing takes no time.

    It waits for the last frame of its chunk, lookahead frames later; for the half of the extractor's window that lies
    behind that one's last feature; and until the `push` samples in which audio comes are full. That is exact: of all
    chunks the largest wait is taken, as pushes and chunks have different ends. A frame's own sound is the hop around
    each of its features.
    """
    extractor, made_of = stream.features.extractor, stream.made_of
    hop, window = extractor.hop_length, extractor.win_length
    chunk = stream.samples_per_frame * (stream.lookahead + 1)
    begin = hop * made_of.first - hop // 2
    end = chunk + hop * (made_of.first - 1) + window // 2
    chunks = range(push // math.gcd(push, chunk))  # then the ends meet again
    longest: int = max(-(-(end + i * chunk) // push) * push - (begin + i * chunk) for i in chunks)
    return longest


@dataclass(frozen=True)
class Cost:
    """Of one file. chunk_ms: audio that comes at once. algorithmic_latency_ms: see `latency`.

    compute_ms: p50 and p95 of the time that a chunk of audio took, of those that completed a chunk of the encoder, its
    end among them. real_time_factor: the time that all of it took over the file's length.
    """

    lookahead_ms: float
    chunk_ms: float
    algorithmic_latency_ms: float
    compute_ms: dict[str, float]
    chunks: int
    real_time_factor: float


def hear(stream: Stream, samples: Samples, push: int, tell: Callable[[Heard], None]) -> tuple[Heard, Cost]:
    """Feeds a file to a fresh stream, `push` samples at a time. tell: called whenever the text has changed."""
    total, spent = 0.0, []
    heard = Heard("", (), 0.0, 0.0, final=False)
    for begin in (*range(0, len(samples), push), None):
        text, frames, started = heard.text, stream.frames, time.perf_counter()
        heard = stream.finish() if begin is None else stream.push(samples[begin : begin + push])
        took = 1000 * (time.perf_counter() - started)
        total += took
        if stream.frames > frames:
            spent.append(took)
        if heard.text != text or heard.final:
            tell(heard)
    p50, p95 = torch.tensor(spent, dtype=torch.float64).quantile(torch.tensor([0.5, 0.95]).double()).tolist()
    return heard, Cost(
        lookahead_ms=_ms(stream.lookahead * stream.samples_per_frame),
        chunk_ms=_ms(push),
        algorithmic_latency_ms=_ms(latency(stream, push)),
        compute_ms={"p50": p50, "p95": p95},
        chunks=len(spent),
        real_time_factor=total / _ms(len(samples)),
    )


def streamed(
    recogniser: Recogniser,
    cuts: Iterable[Cut],
    decoding: Decoding,
    *,
    chunk_ms: int | None = None,
    tell: Callable[[str, Heard], None] = lambda clip, heard: None,
    skipped: Skipped | None = None,
) -> Iterator[tuple[Transcript, Cost]]:
    """Every usable clip, each in a stream of its own and in chunks of `chunk_ms` (None: lookahead + 1 frames).

    tell: called with the clip's id whenever its text has changed. Raises UserError as `check_streaming`, and for
    chunks of less than a millisecond.
    """
    first = Stream(recogniser, decoding)
    if chunk_ms is not None and chunk_ms < 1:
        raise UserError(f"--chunk-ms {chunk_ms}: expected the audio that comes at once, 1 ms or more")
    whole = first.samples_per_frame * (first.lookahead + 1)
    push = whole if chunk_ms is None else chunk_ms * SAMPLING_RATE // 1000
    first.push(torch.zeros(2 * whole))  # warms up: what is computed first takes longer
    for cut in cuts:
        try:
            samples = torch.from_numpy(load_waveform(cut))
        except BadAudio as bad:
            if skipped is not None:
                skipped.add(cut.id, bad)
            continue
        heard, cost = hear(Stream(recogniser, decoding), samples, push, partial(tell, cut.id))
        yield Transcript(cut.id, heard.text, heard.words, heard.score), cost


def _ms(samples: int) -> float:
    return 1000 * samples / SAMPLING_RATE
