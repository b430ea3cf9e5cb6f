"""A model of some shape, from its tensors."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diminuendo.families.family import Family, Model
from diminuendo.structure.shape import Shape

FORMAT = 1


def ragged_config(family: Family, config: Any, shape: Shape) -> Any:
    """The original configuration under a model type of its own, with the shape."""
    values = config.to_dict()
    for key in ("model_type", "architectures", "auto_map", "transformers_version", "diminuendo"):
        values.pop(key, None)
    return family.ragged_config_class(**values, diminuendo={"format": FORMAT, "shape": shape})


def build(family: Family, config: Any, shape: Shape, state: Mapping[str, Tensor], *, recogniser: bool) -> Model:
    """A new model that holds the very tensors of `state` (nothing is copied), in evaluation mode.

    Raises if a tensor is missing, left over, or of another size than `shape` says.
    """
    cls: Any = family.ragged_ctc_class if recogniser else family.ragged_encoder_class
    with torch.device("meta"):
        model = cls(ragged_config(family, config, shape))
    model.load_state_dict(dict(state), strict=True, assign=True)
    for name, parameter in model.named_parameters():
        assert not parameter.is_meta, name
    return model.eval()
