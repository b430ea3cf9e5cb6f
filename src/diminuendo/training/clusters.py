"""The clusters of a teacher that a student learns to tell apart: the teacher's own, or fitted and kept with a run."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from lhotse import CutSet
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diminuendo.data.manifest import total_seconds
from diminuendo.distillation.clusters import Centres, OwnClusters, TeacherClusters, centres_of, fit_centres
from diminuendo.distillation.hidden import valid_frames
from diminuendo.errors import UserError
from diminuendo.families import encoder_config, family_of, model_inputs, stream_width
from diminuendo.families.inputs import SAMPLING_RATE
from diminuendo.tasks.selfsupervised import ClusterHead, Clusters, Scale
from diminuendo.training.compress_config import CompressConfig
from diminuendo.training.heard import some_batches
from diminuendo.training.loop import Loop
from diminuendo.training.objective import Teacher
from diminuendo.training.own_prediction import last_head
from diminuendo.training.removing import Source
from diminuendo.training.run import fingerprint, write_tensors

log = logging.getLogger(__name__)

FILE = "centres.safetensors"


def check_clusters(teacher: Source, cuts: CutSet, config: CompressConfig) -> None:
    """UserError for a layer that the teacher does not have, a file of clusters of another teacher or layer, too little
    audio for so many."""
    if config.discriminative is None:
        return
    layer, depth = layer_of(teacher, config), encoder_config(teacher.model).num_hidden_layers
    if not 0 <= layer <= depth:
        raise UserError(f"cluster_layer {layer}: expected a number from 0 to {depth}, the teacher's depth")
    if config.cluster_file is not None:
        read_centres(Path(config.cluster_file), teacher, layer)
    elif (config.cluster_layer is not None or last_head(teacher.name) is None) and not cuts.is_lazy:
        samples = torch.tensor(int(SAMPLING_RATE * min(config.cluster_seconds, total_seconds(cuts) or math.inf)))
        if (frames := int(family_of(teacher.model).frame_lengths(teacher.model, samples))) < config.num_clusters:
            raise UserError(
                f"num_clusters {config.num_clusters}: there are {frames} frames; give more audio, or fewer clusters"
            )


def layer_of(teacher: Source, config: CompressConfig) -> int:
    """The teacher's layer whose states are clustered."""
    last = int(encoder_config(teacher.model).num_hidden_layers)
    return last if config.cluster_layer is None else config.cluster_layer


def stand_in(teacher: Source, config: CompressConfig) -> TeacherClusters:
    """Clusters of nothing, as large as those would be, to measure what a step takes."""
    dim = stream_width(teacher.model)
    scale = Scale(torch.zeros(dim), torch.ones(dim))
    return Centres(Clusters(scale, torch.randn(config.num_clusters, dim)), 1.0)


def teacher_clusters(trainer: Loop, teacher: Source, cuts: CutSet, config: CompressConfig) -> TeacherClusters:
    """Those that the teacher was pretrained to predict, or that a file has, or of the run; else they are fitted now.

    One process fits, and all go by it.
    """
    layer, kept = layer_of(teacher, config), trainer.run.directory / FILE
    if config.cluster_file is not None:
        return read_centres(Path(config.cluster_file), teacher, layer)
    if config.cluster_layer is None and (head := last_head(teacher.name)) is not None:
        log.info("the teacher's own %d clusters are learned", len(head["embeddings"]))
        own = ClusterHead(head["projection.weight"].shape[1], len(head["embeddings"]))
        own.load_state_dict(head)
        return OwnClusters(own)
    found: list[Centres | None] = [None]
    if trainer.accelerator.is_main_process:
        if not kept.is_file():
            log.info("fitting %d clusters to the teacher's states", config.num_clusters)
            frames = _frames(trainer, teacher, cuts, config)
            fitted = fit_centres(frames, config.num_clusters, torn_between=config.torn_between, seed=config.seed)
            write_tensors(kept, fitted.state_dict(), {"teacher": _fingerprint(teacher), "layer": str(layer)})
        found = [read_centres(kept, teacher, layer)]
    broadcast_object_list(found)
    assert found[0] is not None
    return found[0]


def read_centres(path: Path, teacher: Source, layer: int) -> Centres:
    """UserError for a file that has no clusters, or those of other states than the layer's of the teacher."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
        centres = centres_of(tensors)
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"cluster_file {path}: no clusters can be read ({error}); give a run's {FILE}") from error
    if about.get("teacher") != _fingerprint(teacher):
        raise UserError(f"cluster_file {path} is of another teacher; give its {FILE}, or leave it out to fit them anew")
    if about.get("layer") != str(layer):
        raise UserError(f"cluster_file {path} is of layer {about.get('layer')}; give --set cluster_layer too")
    return centres


def _fingerprint(teacher: Source) -> str:
    """Of its encoder: a head has no part in states."""
    return fingerprint(family_of(teacher.model).encoder(teacher.model))


def _frames(trainer: Loop, source: Source, cuts: CutSet, config: CompressConfig) -> Iterator[Tensor]:
    """The teacher's states of some audio, as it hears them in training, on the CPU. Once through less is enough."""
    layer, device = layer_of(source, config), trainer.accelerator.device
    teacher = Teacher(source.model, source.extractor)
    for batch in some_batches(cuts, config, trainer.skipped, config.cluster_seconds, offset=2):
        lengths, waveforms = batch.lengths.to(device), batch.waveforms.to(device)
        inputs = model_inputs(source.extractor, waveforms, lengths)
        states = teacher.states(waveforms, lengths, source.extractor, inputs, {layer})[layer]
        frames = valid_frames(teacher.frame_lengths(lengths), states.shape[1])
        yield states[frames].float().cpu()
