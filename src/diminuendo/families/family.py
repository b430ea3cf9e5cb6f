"""What the house knows about one family of models. Everything it knows stays outside of the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor

from diminuendo.families.inputs import waveform_example
from diminuendo.families.ranks import factorise, with_ranks
from diminuendo.families.transducer import transducer_axes
from diminuendo.modules.ragged import HEADS, Ragged
from diminuendo.structure.axis import Axis, Product
from diminuendo.structure.shape import Shape

Model = Any
"""A transformers `PreTrainedModel`: transformers is untyped from here."""


Task = Literal["ctc", "rnnt", "tdt"]
TASKS: dict[str, Task] = {"AutoModelForCTC": "ctc", "AutoModelForRNNT": "rnnt", "AutoModelForTDT": "tdt"}


@dataclass(frozen=True)
class Architecture:
    """One class of a family's models, an encoder or a recogniser around it.

    auto_class: the transformers class that opens it, like "AutoModelForCTC".
    stock: transformers' own class, None where it has none; ragged: the same with a size for every layer (modules/).
    """

    auto_class: str
    stock: Any
    ragged: Any

    @property
    def classes(self) -> tuple[Any, ...]:
        return (self.ragged,) if self.stock is None else (self.stock, self.ragged)

    @property
    def task(self) -> Task | None:
        """What it recognises by; None for an encoder."""
        return TASKS.get(self.auto_class)


@dataclass(frozen=True)
class Features:
    """What an encoder hears that reads no waveforms.

    extractor: makes the features. seconds: from one to the next. Frame i of the encoder is made of `stacked` of them,
    from the one numbered i * stacked + first on, and of some more around these where convolutions reach further.
    """

    extractor: Any
    seconds: float
    stacked: int = 1
    first: int = 0


@dataclass(frozen=True)
class Family:
    """One row of FAMILIES.

    architectures: the encoder, then the recognisers around it.
    plain: a deep copy whose weights can be gated one by one (weight norm multiplied out).
    declared: the axes of a model of this family, compressed before or not, as if its matrices were dense.
    products: activations times activations, for `frames` frames in `seconds` seconds.
    hidden_states: the feature projection's output, then the output of every layer; each [batch, frames, dim].
    frame_lengths: the number of frames that a number of samples gives.
    example: the input that a clip of so many samples of noise gives.
    encoder: the encoder inside a recogniser; an encoder itself.
    dense_only: names of linear layers that are used by other ways than being called, so that they cannot be factored.
    fast: the same function computed in the fastest way that we know, for a teacher; it shares the model's tensors.
    streams: whether its encoders hear no more of the future than `num_lookahead_tokens` frames, and go on from caches.
    features: of an encoder's configuration, where its models do not read waveforms.
    initialise: gives a new encoder weights that can be trained, in place, where transformers' own cannot.
    mask_padding: keeps what a clip becomes apart from the padding beside it, in place, where transformers does not.
    """

    architectures: tuple[Architecture, ...]
    plain: Callable[[Model], Model]
    declared: Callable[[Model], tuple[Axis, ...]]
    products: Callable[[Model, int, float], tuple[Product, ...]]
    hidden_states: Callable[[Model, Mapping[str, Tensor]], tuple[Float[Tensor, "batch frames dim"], ...]]
    frame_lengths: Callable[[Model, Int[Tensor, " batch"]], Int[Tensor, " batch"]]
    example: Callable[[Model, int], dict[str, Tensor]] = waveform_example
    dense_only: tuple[str, ...] = ()
    fast: Callable[[Model], Model] = lambda model: model
    streams: bool = False
    features: Callable[[Any], Features] | None = None
    initialise: Callable[[Model], None] = lambda model: None
    mask_padding: Callable[[Model], None] = lambda model: None
    encoder: Callable[[Model], Model] = lambda model: getattr(model, model.base_model_prefix, model)

    @property
    def encoder_class(self) -> Any:
        return self.architectures[0].stock

    @property
    def reads_waveforms(self) -> bool:
        """Whether its models read waveforms, or else features that their extractors make of these."""
        return bool(self.encoder_class.main_input_name == "input_values")

    def axes(self, model: Model) -> tuple[Axis, ...]:
        """The axes of a model, with the ranks of what is factored, and the widths of a transducer's head."""
        return with_ranks(model, (*self.declared(model), *transducer_axes(model)))

    def encoder_axes(self, model: Model) -> tuple[Axis, ...]:
        """Those that hidden states depend on: not a transducer's predictor and joint network."""
        inside = {axis.name for axis in self.axes(self.encoder(model))}
        return tuple(axis for axis in self.axes(model) if axis.name in inside)

    def factorised(self, model: Model) -> Model:
        """The model itself, every matrix inside a sublayer factored at full rank, so that its ranks are axes."""
        return factorise(model, self.declared(model), self.dense_only)

    def architecture_of(self, model: Model) -> Architecture | None:
        """The architecture whose class, stock or ragged, the model is of; of several the last, which is the nearest."""
        fitting = [known for known in self.architectures if isinstance(model, known.classes)]
        return fitting[-1] if fitting else None

    def task_of(self, model: Model) -> Task | None:
        """What a recogniser recognises by; None for an encoder."""
        architecture = self.architecture_of(model)
        return None if architecture is None else architecture.task

    def is_recogniser(self, model: Model) -> bool:
        return self.task_of(model) is not None

    def head(self, model: Model) -> Any:
        """Of a recogniser what reads the encoder's output, a linear layer or a convolution of one frame."""
        return next(getattr(model, name) for name in HEADS if hasattr(model, name))


def shape_before(model: Model) -> Shape:
    """The shape of a model that was compressed before; nothing for any other."""
    shape: Shape = dict(getattr(model.config, "diminuendo", {}).get("shape", {}))
    return shape


def is_ragged(model: Model) -> bool:
    """Whether the model was compressed before."""
    return isinstance(model, Ragged)
