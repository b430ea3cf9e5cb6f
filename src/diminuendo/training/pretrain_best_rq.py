"""Pretraining by BEST-RQ, the one stage of encoders that read features."""

from typing import Any

import torch
from lhotse import CutSet
from torch import Tensor

from diminuendo.errors import UserError
from diminuendo.tasks.best_rq import BestRQ
from diminuendo.training.kernels import choose_attention
from diminuendo.training.loop import Group, Loop, Stage
from diminuendo.training.own_prediction import encoder_of
from diminuendo.training.pretrain_config import BestRQConfig
from diminuendo.training.schedules import warm_up_hold_decay

PUBLISHED_LOOKAHEADS = (0, 1, 6, 13)  # frames of 80 ms, of the published streaming models


def lookaheads_of(model_config: Any, config: BestRQConfig) -> tuple[int, ...]:
    """What is drawn from, in frames; nothing for an encoder that sees all of a clip.

    An encoder sees chunks of lookahead + 1 frames and as many whole chunks before them as its window has room for.
    Raises UserError for lookaheads of an encoder that has none, and for one that leaves no room for a chunk.
    """
    own = getattr(model_config, "default_num_lookahead_tokens", None)
    if own is None:
        if config.lookaheads:
            raise UserError(
                f"lookaheads {list(config.lookaheads)}: {model_config.model_type} does not stream; drop them"
            )
        return ()
    past = model_config.sliding_window - 1
    for lookahead in (*config.lookaheads, own):
        if lookahead >= past:
            raise UserError(
                f"a lookahead of {lookahead} frames leaves no past in a sliding_window of {past + 1}; "
                f"expected at most {past - 1}"
            )
    return config.lookaheads or tuple(sorted({own, *(ahead for ahead in PUBLISHED_LOOKAHEADS if ahead < past)}))


class BestRQStages:
    """The one stage, with what pretraining wants of any: the model, its extractor and which clips were skipped."""

    def __init__(self, trainer: Loop, model_config: Any, cuts: CutSet, config: BestRQConfig) -> None:
        self.trainer, self.cuts, self.config = trainer, cuts, config
        device = trainer.accelerator.device
        torch.manual_seed(config.seed)
        self.model = encoder_of(model_config).to(device)
        choose_attention(self.model, config, device)
        self.objective = BestRQ(
            self.model,
            codebooks=config.codebooks,
            codes=config.codes,
            code_dim=config.code_dim,
            masked=config.masked,
            span_seconds=config.span_seconds,
            lookaheads=lookaheads_of(model_config, config),
            seed=config.seed,
        ).to(device)
        self.extractor = self.objective.heard.extractor
        self.skipped = ""

    def all(self) -> None:
        config = self.config
        schedule = warm_up_hold_decay(config.steps, config.warm_up, config.decay)
        parameters = list(self.objective.parameters())
        group = Group(parameters, config.learning_rate, schedule, weight_decay=config.weight_decay)
        (name,) = config.stages
        self.skipped = self.trainer.run_stage(Stage(name, config.steps, self.objective, [group]), self.cuts)

    def labels(self) -> dict[str, Tensor]:
        """Nothing: the seed says what labels are."""
        return {}
