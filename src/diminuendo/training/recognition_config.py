"""What a training has to know of the recogniser that it trains."""

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from diminuendo.data.sampling import BatchSettings
from diminuendo.errors import UserError
from diminuendo.families.recogniser import Predictor
from diminuendo.training.config import TrainingConfig

RecognitionTask = Literal["own", "ctc", "rnnt", "ctc+rnnt", "tdt"]
TokenKind = Literal["characters", "pieces", "words"]


@dataclass(frozen=True, kw_only=True)
class RecognitionConfig(TrainingConfig):
    """The settings of a recogniser's training; clips are used whole.

    task: "own" for what MODEL recognises by, which for an encoder is "ctc+rnnt": an RNN-T whose encoder also has a CTC
    head while it is trained, whose loss counts ctc_weight.
    tokens: None for those MODEL comes with, characters for an encoder; token_count: of "pieces".
    predictor: of a new transducer, an "lstm" or "stateless", which sees the last two labels alone and has one layer;
    predictor_width, predictor_layers: of it and of the joint network; None for the encoder's width, 640 at most, which
    is Parakeet's.
    head_learning_rate: of all that is not the encoder; in a compression, of a head that is new.
    flat_start: the fraction of the steps that begin by learning frames, as if all labels of a clip were equally long.
    From a head that knows nothing of speech CTC and RNN-T may stay for thousands of steps where they give the most
    frequent labels; a flat start leads past that. It needs CTC, alone or beside.
    augment: SpecAugment, from the fraction `augment_from` of the steps on: before, a head that is new has enough to do.
    augment_strength: of its masks' largest sizes, which are published for models of 100 million parameters; small ones,
    and short trainings, want less. speeds: every clip is played at one of them at random, like (0.9, 1.0, 1.1), which
    changes pitch too: of few speakers it makes more.
    level: of a model that hears it in filter banks (`--input fbank-plain`), by how many dB at most every clip is made
    louder or softer at random: the teacher's clips are normalised, or it was pretrained on more levels than a short
    training has.
    lookaheads: of a streaming encoder, in its frames; a batch has one of them at random. None for the published ones,
    0, 1, 6 and 13 (of 80 ms), and the model's own.
    """

    task: RecognitionTask | None = "own"
    tokens: TokenKind | None = None
    token_count: int = 256
    ctc_weight: float = 0.3
    predictor: Predictor = "lstm"
    predictor_width: int | None = None
    predictor_layers: int = 1
    head_learning_rate: float = 1e-3
    flat_start: float = 0.0
    augment: bool = True
    augment_from: float = 0.1
    augment_strength: float = 1.0
    speeds: tuple[float, ...] = (1.0,)
    level: float = 10.0
    lookaheads: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, given, known in (
            ("--task", self.task, get_args(RecognitionTask)),
            ("--tokens", self.tokens, get_args(TokenKind)),
            ("predictor", self.predictor, get_args(Predictor)),
        ):
            if given is not None and given not in known:
                raise UserError(f"{name} {given}: expected one of {', '.join(known)}")
        for name in ("augment_from", "flat_start"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is a fraction of the steps, from 0 to 1; got {getattr(self, name)}")
        if not 0 < self.augment_strength <= 1:
            raise UserError(
                f"augment_strength must lie in (0, 1], got {self.augment_strength}; for none: augment=false"
            )
        if not 0 <= self.level <= 60:
            raise UserError(f"level {self.level:g}: expected decibels from 0 to 60")
        if not isinstance(self.speeds, tuple) or not self.speeds or not all(0.5 <= one <= 2 for one in self.speeds):
            raise UserError(f"speeds {self.speeds}: expected some from 0.5 to 2, like (0.9, 1.0, 1.1)")
        for name in ("token_count", "predictor_width", "predictor_layers"):
            if (given := getattr(self, name)) is not None and given < 1:
                raise UserError(f"{name} must be at least 1, got {given}")
        if self.predictor == "stateless" and self.task in (None, "ctc"):
            why = "there is no task" if self.task is None else "--task ctc has no predictor"
            raise UserError(f"predictor stateless: {why}; give --task rnnt or ctc+rnnt, or leave predictor out")
        if self.predictor == "stateless" and self.predictor_layers != 1:
            raise UserError(f"predictor stateless: it has 1 layer, got predictor_layers {self.predictor_layers}")
        if self.ctc_weight < 0:
            raise UserError(f"ctc_weight must not be negative, got {self.ctc_weight}")
        if self.lookaheads is not None and (not self.lookaheads or min(self.lookaheads) < 0):
            raise UserError(f"lookaheads {self.lookaheads}: expected numbers of frames, 0 or more")

    def batch_settings(self, **settings: Any) -> BatchSettings:
        """Of the batches of one stage, clips at their speeds."""
        return replace(super().batch_settings(**settings), speeds=self.speeds)
