"""Self-supervised pretraining from random weights.

Of encoders that read waveforms: a warm-up of the front end, then HuBERT's iterations. Of others: pretrain_best_rq.py.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Int
from lhotse import CutSet
from torch import Tensor

from diminuendo.data.batching import TrainingBatches, look_at_one
from diminuendo.data.manifest import total_seconds
from diminuendo.errors import UserError
from diminuendo.export.huggingface import save
from diminuendo.families import model_inputs
from diminuendo.profiling.count import count_parameters
from diminuendo.profiling.latency import peak_memory_mb
from diminuendo.tasks.clips import Whitening, clip_statistics, fit_whitening, whitening_of
from diminuendo.tasks.selfsupervised import (
    FrameFeatures,
    FrontEndObjective,
    Inputs,
    MaskedPrediction,
    Scale,
    centred,
    cepstral_frames,
    clusters_of,
    fit_clusters,
    fit_scale,
    frame_grid,
    layer_frames,
    log_mel_frames,
)
from diminuendo.training.card import pretraining_card
from diminuendo.training.config import LoopConfig
from diminuendo.training.configurations import read_configuration
from diminuendo.training.device import make_accelerator
from diminuendo.training.hearing import lookaheads_of
from diminuendo.training.kernels import choose_attention, choose_convolution
from diminuendo.training.loop import Group, Loop, Stage, carry_out
from diminuendo.training.own_prediction import FILES, encoder_of, extractor_of
from diminuendo.training.pretrain_best_rq import BestRQStages
from diminuendo.training.pretrain_config import (
    AnyPretrainConfig,
    BestRQConfig,
    PretrainConfig,
    config_class,
)
from diminuendo.training.progress import duration_text
from diminuendo.training.run import Run, clips_of, defaults_of, write_tensors
from diminuendo.training.schedules import warm_up_hold_decay

log = logging.getLogger(__name__)

SCALE_SECONDS = 200.0  # of audio, for the mean and deviation of log-mel bands


def pretrain(
    name: str,
    cuts: CutSet,
    out: Path,
    config: AnyPretrainConfig,
    *,
    loop: LoopConfig | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Trains the encoder that `name` describes (see `read_configuration`) on audio alone and writes it to `out`.

    config: of the class that `config_class` gives. Beside a model trained by clusters, clusters.safetensors has what
    its labels were made with, so that training can go on: for each iteration k-means' `centres` (of frames scaled
    by `mean` and `deviation`), the heads (`head.projection`, class embeddings `head.embeddings`), for later ones the
    `model` whose states were clustered. Beside one trained by BEST-RQ best_rq.safetensors has the `head`; the seed
    gives the rest. The result has `params`, by stage the `steps` and the final `accuracy` on masked frames, `skipped`,
    `seconds` and `out`; it is kept as result.json.

    Raises UserError for an unknown configuration, for settings that it cannot be trained with, and for a directory that
    holds something else.
    """
    model_config = read_configuration(name)
    _check(name, model_config, config)
    run = Run(out, _identity(name, model_config, cuts, config), defaults_of(config))
    look_at_one(cuts, config.batch_settings())  # audio that cannot be used is found here, before anything is written

    def train(trainer: Loop) -> tuple[dict[str, Any], Callable[[], None]]:
        stages: _Stages | BestRQStages
        if isinstance(config, BestRQConfig):
            stages = BestRQStages(trainer, model_config, cuts, config)
        else:
            stages = _Stages(trainer, model_config, cuts, config)
        stages.all()
        result = {
            "params": count_parameters(stages.model),
            "steps": config.stage_steps,
            "accuracy": _final_accuracies(run.log),
            "skipped": stages.skipped,
            "out": str(out),
        }

        def write() -> None:
            if labels := stages.labels():
                write_tensors(out / FILES[config.objective], labels)
            save(stages.model.cpu(), stages.extractor, out, card=pretraining_card(name, result, asdict(config)))

        return result, write

    return carry_out(run, config, loop, train, resume=resume, overwrite=overwrite)


def dry_run(name: str, cuts: CutSet, config: AnyPretrainConfig, *, loop: LoopConfig | None = None) -> dict[str, Any]:
    """What a pretraining would take, from two steps of every stage; nothing stays of them."""
    steps = config.stage_steps
    with TemporaryDirectory() as directory:
        quiet = replace(loop or LoopConfig(), quiet=True, log_every=1)
        result = pretrain(name, cuts, Path(directory), config.trial, loop=quiet)
        lines = map(json.loads, (Path(directory) / "log.jsonl").read_text().splitlines())
        of_a_step = {line["stage"]: line["seconds_per_step"] for line in lines}
    seconds = {stage: round(steps[stage] * of_a_step[stage], 1) for stage in steps}
    memory = round(peak_memory_mb(make_accelerator(config.precision, quiet.device).device))
    log.info("about %s, %s MB (from two steps a stage)", duration_text(sum(seconds.values())), f"{memory:,}")
    return {
        "params": result["params"],
        "steps": steps,
        "estimated_seconds_by_stage": seconds,
        "estimated_seconds": round(sum(seconds.values()), 1),
        "estimated_memory_mb": memory,
        **clips_of(cuts),
    }


def _check(name: str, model_config: Any, config: AnyPretrainConfig) -> None:
    if not isinstance(config, config_class(model_config)):
        expected = config_class(model_config).objective
        raise UserError(
            f"CONFIG {name}, by what it reads, is pretrained by {expected}; got settings of {config.objective}"
        )
    if isinstance(config, BestRQConfig):
        lookaheads_of(model_config, config.lookaheads)
        return
    depth = model_config.num_hidden_layers
    if config.target_layer is not None and not 1 <= config.target_layer <= depth:
        raise UserError(f"target_layer {config.target_layer}: expected a number from 1 to {depth}, the model's depth")


def _identity(name: str, model_config: Any, cuts: CutSet, config: AnyPretrainConfig) -> dict[str, Any]:
    """What a checkpoint belongs to."""
    shape = model_config.to_dict() | {"transformers_version": None}
    return {
        "command": "pretrain",
        "source": name,
        "model_fingerprint": hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16],
        **clips_of(cuts),
        "config": asdict(config),
    }


class _Stages:
    """The stages of one pretraining. What a stage was given, and what it leaves, is in the loop's `carried`."""

    def __init__(self, trainer: Loop, model_config: Any, cuts: CutSet, config: PretrainConfig) -> None:
        self.trainer, self.cuts, self.config = trainer, cuts, config
        self.device = trainer.accelerator.device
        torch.manual_seed(config.seed)
        self.model = encoder_of(model_config).to(self.device)
        choose_attention(self.model, config, self.device)
        self.extractor = extractor_of(model_config)
        self.grid = frame_grid(model_config)
        self.skipped = ""

    def all(self) -> None:
        """Runs what the checkpoint has not behind it already."""
        resumed, steps = self.trainer.resumed_stage, self.config.stage_steps
        names = [name for name in steps if steps[name]]
        for name in names[names.index(resumed) if resumed else 0 :]:
            self.front_end() if name == "front_end" else self.iteration(name)

    def order(self, name: str) -> int:
        return self.config.stages.index(name)

    def front_end(self) -> None:
        weight = self.config.clip_weights[0]
        scale, whitening = self._log_mel_scale(), self._whitening(weight)
        torch.manual_seed(self.config.seed)
        objective = FrontEndObjective(self.model, self.extractor, scale, whitening, weight).to(self.device)
        heads = (objective.head, objective.clip_head)
        parts = (self.model.feature_extractor, self.model.feature_projection, *heads)
        self._run("front_end", objective, [p for part in parts if part is not None for p in part.parameters()])

    def _log_mel_scale(self) -> Scale:
        carried = self.trainer.carried
        if "log_mel" not in carried:
            features = partial(log_mel_frames, grid=self.grid)
            scale = fit_scale(torch.cat(list(self._frames(features, SCALE_SECONDS))))
            carried["log_mel"] = {"mean": scale.mean, "deviation": scale.deviation}
        return Scale(**carried["log_mel"])

    def _whitening(self, weight: float) -> Whitening | None:
        """Of clips' statistics, where a loss with that weight needs it."""
        if not weight:
            return None
        carried = self.trainer.carried
        if "clips" not in carried:
            heard = self._heard(self.config.cluster_seconds)
            found = [clip_statistics(log_mel_frames(inputs, self.grid), counts).cpu() for inputs, counts in heard]
            carried["clips"] = fit_whitening(torch.cat(found)).tensors()
        return whitening_of(carried["clips"])

    def iteration(self, name: str) -> None:
        """One round of masked prediction: of clusters of cepstra, then of states of the model that learned these."""
        carried, config = self.trainer.carried, self.config
        kept = carried.setdefault(name, {})
        features = self._cepstra() if name == "iteration_1" else self._states(kept)
        if config.centred:
            features = centred(features, self.grid)
        if "clusters" not in kept:
            frames = self._frames(features, config.cluster_seconds)
            kept["clusters"] = fit_clusters(frames, config.num_clusters, config.seed).tensors()
        whitening = self._whitening(config.clip_weights[1])
        torch.manual_seed(config.seed + self.order(name))
        objective = MaskedPrediction(
            self.model,
            self.extractor,
            features,
            clusters_of(kept["clusters"]),
            fraction=config.masked,
            span=config.span,
            seed=config.seed + self.order(name),
            whitening=whitening,
            clip_weight=config.clip_weights[1],
        ).to(self.device)
        self._run(name, objective, list(objective.parameters()))
        state = objective.state_dict()
        kept["heads"] = {key: state[key].detach().cpu() for key in state if not key.startswith("student.")}

    def _cepstra(self) -> FrameFeatures:
        return partial(cepstral_frames, grid=self.grid)

    def _states(self, kept: dict[str, Any]) -> FrameFeatures:
        """Of a frozen copy of the model, up to the target layer, as it was at the end of the last iteration."""
        depth = self.model.config.num_hidden_layers
        teacher = encoder_of(self.model.config, self.config.target_layer or (depth + 1) // 2)
        if "teacher" not in kept:
            state = self.model.state_dict()
            kept["teacher"] = {key: state[key].detach().cpu().clone() for key in teacher.state_dict()}
        teacher.load_state_dict(kept["teacher"])
        choose_convolution(teacher)
        return partial(layer_frames, teacher.requires_grad_(False))

    def _run(self, name: str, objective: Any, parameters: list[torch.nn.Parameter]) -> None:
        config, steps = self.config, self.config.stage_steps
        rate = config.front_end_learning_rate if name == "front_end" else config.learning_rate
        schedule = warm_up_hold_decay(steps[name], config.warm_up, config.decay)
        group = Group(parameters, rate, schedule, weight_decay=config.weight_decay)
        offset = sum(steps[earlier] for earlier in self.config.stages[: self.order(name)])
        stage = Stage(name, steps[name], objective, [group], offset=offset)
        self.skipped = self.trainer.run_stage(stage, self.cuts, order=self.order(name))

    def _heard(self, seconds: float) -> Iterator[tuple[Inputs, Int[Tensor, " batch"]]]:
        """What a model hears of some audio, the same in every process, and its frames. Once through less is enough."""
        settings = self.config.batch_settings(offset=len(self.config.stages))
        batches, seen = TrainingBatches(self.cuts, settings, self.trainer.skipped), 0.0
        available = total_seconds(self.cuts)
        try:
            while seen < min(seconds, available or seconds):
                batch = next(batches)
                lengths = batch.lengths.to(self.device)
                yield model_inputs(self.extractor, batch.waveforms.to(self.device), lengths), self.grid.counts(lengths)
                seen += batch.seconds
        finally:
            batches.close()

    def _frames(self, features: FrameFeatures, seconds: float) -> Iterator[Tensor]:
        """Frames of some audio, on the CPU."""
        for inputs, counts in self._heard(seconds):
            with self.trainer.accelerator.autocast():
                frames = features(inputs).cpu()
            yield frames[torch.arange(frames.shape[1]) < counts.cpu()[:, None]]

    def labels(self) -> dict[str, Tensor]:
        """What whitens clips; of each iteration the clusters, the encoder whose states they are of, and the heads."""
        found = {f"clips.{key}": value for key, value in self.trainer.carried.get("clips", {}).items()}
        for name in self.config.stages[1:]:
            if kept := self.trainer.carried.get(name):
                model = {f"model.{key}": value for key, value in kept.get("teacher", {}).items()}
                found |= {f"{name}.{key}": value for key, value in (kept["clusters"] | kept["heads"] | model).items()}
        return found


def _final_accuracies(log: Path) -> dict[str, float]:
    """The mean over the last tenth of each stage's log lines."""
    found: dict[str, list[float]] = {}
    for line in map(json.loads, log.read_text().splitlines()):
        if "accuracy" in line:
            found.setdefault(line["stage"], []).append(line["accuracy"])
    tails = {stage: values[-max(1, len(values) // 10) :] for stage, values in found.items()}
    return {stage: round(sum(tail) / len(tail), 4) for stage, tail in tails.items()}
