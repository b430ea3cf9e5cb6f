"""Pretraining by BEST-RQ, the one stage of encoders that read features."""

from typing import Any

import torch
from lhotse import CutSet
from torch import Tensor

from diminuendo.training.kernels import choose_attention
from diminuendo.training.loop import Group, Loop, Stage
from diminuendo.training.own_prediction import best_rq_of, encoder_of
from diminuendo.training.pretrain_config import BestRQConfig
from diminuendo.training.schedules import warm_up_hold_decay


class BestRQStages:
    """The one stage, with what pretraining wants of any: the model, its extractor and which clips were skipped."""

    def __init__(self, trainer: Loop, model_config: Any, cuts: CutSet, config: BestRQConfig) -> None:
        self.trainer, self.cuts, self.config = trainer, cuts, config
        device = trainer.accelerator.device
        torch.manual_seed(config.seed)
        self.model = encoder_of(model_config).to(device)
        choose_attention(self.model, config, device)
        self.objective = best_rq_of(self.model, config, config.seed).to(device)
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
        """The head's: the seed says what labels are."""
        return {f"head.{key}": value.detach().cpu() for key, value in self.objective.head.state_dict().items()}
