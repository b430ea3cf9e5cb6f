"""The objective that a model was pretrained with, to go on with it: what pruning without a teacher minimises."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Wav2Vec2FeatureExtractor

from diminuendo.errors import UserError
from diminuendo.families import FAMILIES, Model
from diminuendo.families.inputs import SAMPLING_RATE
from diminuendo.tasks.best_rq import BestRQ
from diminuendo.tasks.clips import whitening_of
from diminuendo.tasks.selfsupervised import (
    FrameFeatures,
    FrameGrid,
    MaskedPrediction,
    centred,
    cepstral_frames,
    clusters_of,
    frame_grid,
    layer_frames,
)
from diminuendo.training.configurations import read_configuration
from diminuendo.training.hearing import lookaheads_of
from diminuendo.training.kernels import choose_convolution
from diminuendo.training.pretrain_config import BestRQConfig

# What `pretrain` writes beside a model, by its objective.
FILES = {"clusters": "clusters.safetensors", "best_rq": "best_rq.safetensors"}


def encoder_of(config: Any, layers: int | None = None) -> Model:
    """An encoder with fresh weights, of the configuration's first layers if `layers` says how many."""
    shallow = type(config).from_dict(config.to_dict())
    shallow.num_hidden_layers = config.num_hidden_layers if layers is None else layers
    family = FAMILIES[config.model_type]
    cls: Any = family.encoder_class
    encoder: Model = cls(shallow).eval()
    family.initialise(encoder)
    return encoder


def extractor_of(config: Any) -> Any:
    """What an encoder of this configuration hears: features, or waveforms of zero mean and unit variance."""
    family = FAMILIES[config.model_type]
    if family.features is not None:
        return family.features(config).extractor
    return Wav2Vec2FeatureExtractor(
        feature_size=1,
        sampling_rate=SAMPLING_RATE,
        do_normalize=True,
        return_attention_mask=config.feat_extract_norm == "layer",
    )


def labels_of(directory: str | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `pretrain` wrote beside a model: the tensors of its labels and heads, and its configuration.

    Raises UserError if it did not make the directory.
    """
    run = Path(directory or "") / "run.json"
    config = _configuration(run)
    name = FILES.get(config.get("objective", "clusters"))  # a pretraining from before there were two has clusters
    tensors = load_file(run.with_name(name)) if config and name and run.with_name(name).is_file() else {}
    if not (_complete_head(tensors) or _complete_clusters(tensors, config)):
        raise UserError(
            f"MODEL {directory}: masked prediction needs the labels of its pretraining ({' or '.join(FILES.values())}, "
            "and run.json), which `diminuendo pretrain` writes beside a model; pretrain it with this version"
        )
    return tensors, config


def _configuration(run: Path) -> dict[str, Any]:
    """What a run's file says; nothing where there is none, or one that others wrote."""
    try:
        config = json.loads(run.read_text())["config"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return config if isinstance(config, dict) else {}


def _complete_head(tensors: Mapping[str, Tensor]) -> bool:
    return {"head.weight", "head.bias"} <= tensors.keys()


def _complete_clusters(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> bool:
    iterations = any(key.startswith("iteration_") for key in tensors)
    return iterations and (not config["clip_weights"][1] or "clips.mean" in tensors)


def last_head(directory: str | None) -> dict[str, Tensor] | None:
    """The head by which `pretrain` predicted clusters in the end; None if it did not make the directory."""
    try:
        tensors, config = labels_of(directory)
    except UserError:
        return None
    if config.get("objective") == "best_rq":
        return None
    return _under("head", _under(f"iteration_{_last_iteration(tensors)}", tensors))


def _last_iteration(tensors: Mapping[str, Tensor]) -> int:
    return max(int(key.split(".")[0].removeprefix("iteration_")) for key in tensors if key.startswith("iteration_"))


def own_prediction(directory: str | None, model: Model, extractor: Any, seed: int) -> MaskedPrediction | BestRQ:
    """What the pretraining in `directory` ended with, heads included, of `model`: masks are drawn from `seed`.

    Of one by clusters it is the last iteration. Raises UserError if `pretrain` did not make the directory.
    """
    tensors, config = labels_of(directory)
    if config.get("objective") == "best_rq":
        own = BestRQConfig(**{**config, "lookaheads": tuple(config["lookaheads"])})
        found = best_rq_of(model, own, seed, norms_by_batch=False)
        found.head.load_state_dict(_under("head", tensors))
        return found
    return _masked_prediction(str(directory), tensors, config, model, extractor, seed)


def best_rq_of(model: Model, config: BestRQConfig, seed: int, *, norms_by_batch: bool = True) -> BestRQ:
    """BEST-RQ as `config` has it, with a fresh head; the codes are those of the configuration's seed.

    UserError for lookaheads that the model cannot have.
    """
    return BestRQ(
        model,
        codebooks=config.codebooks,
        codes=config.codes,
        code_dim=config.code_dim,
        masked=config.masked,
        span_seconds=config.span_seconds,
        lookaheads=lookaheads_of(model.config, config.lookaheads),
        seed=seed,
        code_seed=config.seed,
        norms_by_batch=norms_by_batch,
    )


def _masked_prediction(
    directory: str,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    model: Model,
    extractor: Any,
    seed: int,
) -> MaskedPrediction:
    kept = _under(f"iteration_{_last_iteration(tensors)}", tensors)
    grid = frame_grid(model.config, extractor.sampling_rate)
    features = _features(_under("model", kept), read_configuration(directory), grid)
    objective = MaskedPrediction(
        model,
        extractor,
        centred(features, grid) if config["centred"] else features,
        clusters_of(kept),
        fraction=config["masked"],
        span=config["span"],
        seed=seed,
        whitening=whitening_of(_under("clips", tensors)) if config["clip_weights"][1] else None,
        clip_weight=config["clip_weights"][1],
    )
    objective.head.load_state_dict(_under("head", kept))
    if objective.clip_head is not None:
        objective.clip_head.load_state_dict(_under("clip_head", kept))
    return objective


def _features(labels: Mapping[str, Tensor], config: Any, grid: FrameGrid) -> FrameFeatures:
    """What was clustered: the states of a frozen encoder, or without one cepstra."""
    if not labels:
        return partial(cepstral_frames, grid=grid)
    depth = 1 + max(int(key.split(".")[2]) for key in labels if key.startswith("encoder.layers."))
    with torch.device("meta"):
        encoder = encoder_of(config, depth)
    encoder.load_state_dict(dict(labels), assign=True)
    choose_convolution(encoder)
    return partial(layer_frames, encoder.requires_grad_(False))


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}
