"""Which family a model belongs to."""

from diminuendo.errors import UserError
from diminuendo.families.family import Family, Model
from diminuendo.families.wav2vec2 import HUBERT, UNISPEECH_SAT, WAV2VEC2

FAMILIES: dict[str, Family] = {family.model_type: family for family in (HUBERT, WAV2VEC2, UNISPEECH_SAT)}
_RAGGED = {family.ragged_model_type: family for family in FAMILIES.values()}


def family_of_type(model_type: str) -> Family:
    """The family of a model type as config.json names it, compressed or not. UserError for any other."""
    family = FAMILIES.get(model_type) or _RAGGED.get(model_type)
    if family is None:
        raise UserError(
            f"model type {model_type!r} is not supported; supported are {', '.join(FAMILIES)} "
            "(encoders and their CTC recognisers) and what diminuendo made of them"
        )
    return family


def family_of(model: Model) -> Family:
    return family_of_type(str(model.config.model_type))
