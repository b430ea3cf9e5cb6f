"""A model of some shape, from its tensors."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diminuendo.families.family import Model
from diminuendo.families.registry import family_of
from diminuendo.structure.shape import Shape

FORMAT = 1
OF_ONE_CLASS = ("model_type", "architectures", "auto_map", "transformers_version", "diminuendo")
"""What a configuration says of the very class that it belongs to."""


def ragged_config(config_class: Any, config: Any, shape: Shape) -> Any:
    """The original configuration under a model type of its own, with the shape."""
    values = {key: value for key, value in config.to_dict().items() if key not in OF_ONE_CLASS}
    return config_class(**values, diminuendo=described(shape, config))


def described(shape: Shape, config: Any) -> dict[str, Any]:
    """What a configuration says of a model of some shape, made of one with the configuration `config`."""
    heard = {key: value for key, value in getattr(config, "diminuendo", {}).items() if key == "input"}
    return {"format": FORMAT, "shape": shape, **heard}


def build(like: Model, shape: Shape, state: Mapping[str, Tensor], config: Any = None) -> Model:
    """A model of the architecture of `like`, in evaluation mode, that holds the very tensors of `state`.

    config: the original configuration, where it is not that of `like`.

    Raises if a tensor is missing, left over, or of another size than `shape` says.
    """
    architecture = family_of(like).architecture_of(like)
    assert architecture is not None, type(like)
    with torch.device("meta"):
        model = architecture.ragged(ragged_config(architecture.ragged.config_class, config or like.config, shape))
    model.load_state_dict(dict(state), strict=True, assign=True)
    device = next(model.parameters()).device
    for name, buffer in model.named_buffers():
        if buffer.is_meta:  # not saved: a constant
            path, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(path), leaf, like.get_buffer(name).to(device, copy=True))
    for name, parameter in model.named_parameters():
        assert not parameter.is_meta, name
    if getattr(like, "generation_config", None) is not None:
        model.generation_config = copy.deepcopy(like.generation_config)
    return model.eval()
