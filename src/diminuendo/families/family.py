"""What the house knows about one family of models. Everything it knows stays outside of the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from diminuendo.structure.axis import Axis, Product

Model = Any
"""A transformers `PreTrainedModel`: transformers is untyped from here."""


@dataclass(frozen=True)
class Family:
    """One row of FAMILIES.

    model_type: transformers' name.
    encoder_class, ctc_class: stock classes of the encoder and of its CTC recogniser.
    ragged_config_class, ragged_encoder_class, ragged_ctc_class: the same with a size for every layer (modules/).
    plain: a deep copy whose weights can be gated one by one (weight norm multiplied out).
    axes: the axes of a model of this family, compressed before or not.
    products: activations times activations, for `frames` frames in `seconds` seconds.
    hidden_states: the feature projection's output, then the output of every layer; each [batch, frames, dim].
    frame_lengths: the number of frames that a number of samples gives.
    """

    model_type: str
    encoder_class: type[nn.Module]
    ctc_class: type[nn.Module]
    ragged_config_class: type[Any]
    ragged_encoder_class: type[nn.Module]
    ragged_ctc_class: type[nn.Module]
    plain: Callable[[Model], Model]
    axes: Callable[[Model], tuple[Axis, ...]]
    products: Callable[[Model, int, float], tuple[Product, ...]]
    hidden_states: Callable[[Model, Mapping[str, Tensor]], tuple[Float[Tensor, "batch frames dim"], ...]]
    frame_lengths: Callable[[Model, Int[Tensor, " batch"]], Int[Tensor, " batch"]]

    @property
    def ragged_model_type(self) -> str:
        return str(self.ragged_config_class.model_type)

    def encoder(self, model: Model) -> Model:
        """The encoder inside a recogniser; an encoder itself."""
        return getattr(model, model.base_model_prefix, model)
