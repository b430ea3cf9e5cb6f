"""How a model hears clips while it is trained: with which lookahead, and what of them is masked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diminuendo.errors import UserError
from diminuendo.families import Model, encoder_config, family_of, model_inputs
from diminuendo.families.filter_bank_input import hears_level
from diminuendo.tasks.augment import at_some_level, augmented
from diminuendo.tasks.selfsupervised import generator_of
from diminuendo.training.recognition_config import RecognitionConfig

PUBLISHED_LOOKAHEADS = (0, 1, 6, 13)
"""In frames, of streaming Nemotron's checkpoints: 0, 80, 480 and 1,040 ms."""


@dataclass(frozen=True)
class Hearing:
    """How clips are heard in a step.

    lookaheads: of a streaming encoder, in frames; every batch has one of them, drawn like its masks from seed and draw.
    augment_from: the step from which the input is masked, None for never; strength: how much of the published masks.
    flat_start: steps of a flat start; in their last third it fades. Steps are those of the run, not of a stage.
    level: by how much at most, in dB, clips are made louder or softer for a model that hears it in filter banks.
    """

    lookaheads: tuple[int, ...] = ()
    augment_from: int | None = None
    seed: int = 0
    flat_start: int = 0
    strength: float = 1.0
    level: float = 0.0

    def flat(self, step: int) -> float:
        """How much of the loss of this step is a flat start's."""
        return min(1.0, max(0.0, 3 * (1 - step / self.flat_start))) if self.flat_start else 0.0

    def inputs(
        self, model: Model, extractor: Any, waveforms: Tensor, lengths: Tensor, step: int, draw: int
    ) -> dict[str, Any]:
        generator = generator_of(self.seed, draw)
        if self.level and hears_level(model):
            waveforms = at_some_level(waveforms, self.level, generator)
        inputs: dict[str, Any] = model_inputs(extractor, waveforms, lengths)
        if self.augment_from is not None and step >= self.augment_from:
            counts = family_of(model).frame_lengths(model, lengths)
            inputs = augmented(model, inputs, counts, generator, self.strength)
        if self.lookaheads:
            chosen = torch.randint(len(self.lookaheads), (), generator=generator)
            inputs["num_lookahead_tokens"] = self.lookaheads[int(chosen)]
        return inputs


def hearing_of(config: RecognitionConfig, model: Model) -> Hearing:
    """As `config` has it; without a task nothing is masked. UserError for lookaheads that the model cannot have."""
    lookaheads = lookaheads_of(encoder_config(model), config.lookaheads or ())
    if config.task is None:
        return Hearing(lookaheads, seed=config.seed, level=config.level)
    augment_from = round(config.augment_from * config.steps) if config.augment else None
    flat_start = round(config.flat_start * config.steps)
    return Hearing(lookaheads, augment_from, config.seed, flat_start, config.augment_strength, config.level)


def lookaheads_of(model_config: Any, given: Sequence[int] = ()) -> tuple[int, ...]:
    """What is drawn from, in frames: those given, else the encoder's own and the published ones that it has room for.

    Nothing for an encoder that sees all of a clip. One that streams sees chunks of lookahead + 1 frames and as many
    whole chunks before them as its window has room for. Raises UserError for lookaheads of an encoder that has none,
    and for one that leaves no room for a chunk.
    """
    own = getattr(model_config, "default_num_lookahead_tokens", None)
    if own is None:
        if given:
            raise UserError(
                f"lookaheads {list(given)}: MODEL is no streaming model, it hears whole clips; leave lookaheads out"
            )
        return ()
    past = model_config.sliding_window - 1
    for lookahead in (*given, own):
        if lookahead >= past:
            raise UserError(
                f"a lookahead of {lookahead} frames leaves no past in a sliding_window of {past + 1}; "
                f"expected at most {past - 1}"
            )
    return tuple(given) or tuple(sorted({own, *(ahead for ahead in PUBLISHED_LOOKAHEADS if ahead < past)}))
