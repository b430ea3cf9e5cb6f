"""Which family a model belongs to."""

from typing import Any

from diminuendo.errors import UserError
from diminuendo.families.data2vec import DATA2VEC_AUDIO
from diminuendo.families.family import Family, Model, shape_before
from diminuendo.families.parakeet import NEMOTRON, PARAKEET
from diminuendo.families.wav2vec2 import HUBERT, UNISPEECH_SAT, WAV2VEC2
from diminuendo.families.wav2vec2_bert import WAV2VEC2_BERT
from diminuendo.families.wav2vec2_conformer import WAV2VEC2_CONFORMER
from diminuendo.families.wavlm import WAVLM

_ALL = (
    HUBERT,
    WAV2VEC2,
    UNISPEECH_SAT,
    WAVLM,
    DATA2VEC_AUDIO,
    WAV2VEC2_CONFORMER,
    WAV2VEC2_BERT,
    PARAKEET,
    NEMOTRON,
)
FAMILIES: dict[str, Family] = {
    architecture.stock.config_class.model_type: family
    for family in _ALL
    for architecture in family.architectures
    if architecture.stock is not None
}
_RAGGED = {
    architecture.ragged.config_class.model_type: family for family in _ALL for architecture in family.architectures
}


def family_of_type(model_type: str) -> Family:
    """The family of a model type as config.json names it, compressed or not. UserError for any other."""
    family = FAMILIES.get(model_type) or _RAGGED.get(model_type)
    if family is None:
        encoders = [known.encoder_class.config_class.model_type for known in FAMILIES.values()]
        raise UserError(
            f"model type {model_type!r} is not supported; supported are {', '.join(dict.fromkeys(encoders))} "
            "(encoders and their recognisers) and what diminuendo made of them"
        )
    return family


def family_of(model: Model) -> Family:
    return family_of_type(str(model.config.model_type))


def encoder_config(model: Model) -> Any:
    """The configuration of the encoder, inside of a recogniser or alone."""
    return family_of(model).encoder(model).config


def stream_width(model: Model) -> int:
    """The width of a model's hidden states."""
    kept = shape_before(model).get("width", encoder_config(model).hidden_size)
    return kept if isinstance(kept, int) else len(kept)


def find_family(model: Any) -> Family | None:
    """The family of a model; None for one that is of no family."""
    model_type = str(getattr(getattr(model, "config", None), "model_type", None))
    return FAMILIES.get(model_type) or _RAGGED.get(model_type)
