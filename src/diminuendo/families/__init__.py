"""One file a family; FAMILIES is a plain dict from transformers' model type."""

from diminuendo.families.build import build
from diminuendo.families.family import Family, Model
from diminuendo.families.inputs import model_inputs
from diminuendo.families.load import load, load_feature_extractor
from diminuendo.families.measure import build_cost_model
from diminuendo.families.registry import FAMILIES, encoder_config, family_of, stream_width

__all__ = [
    "FAMILIES",
    "Family",
    "Model",
    "build",
    "build_cost_model",
    "encoder_config",
    "family_of",
    "load",
    "load_feature_extractor",
    "model_inputs",
    "stream_width",
]
