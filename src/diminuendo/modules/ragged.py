"""What models with a size of its own for every layer have in common.

The files of this folder travel with saved models, so that `AutoModel.from_pretrained(directory,
trust_remote_code=True)` needs only torch and transformers 5. A model's configuration is the original one plus a key
`diminuendo` whose `shape` gives the kept members per axis: a number, or the list of kept members where their positions
matter. If it has an `input` too, that is "fbank": in the place of convolutions on the waveform there are filter banks,
with the plain front end if `conv_dim` has two numbers, else with that which hears no level.
"""

import json
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from .filter_bank import HOP, STRIDE, FilterBankFrontEnd, as_values
from .low_rank import LowRank
from .residual import Residual

if int(transformers.__version__.split(".")[0]) < 5:
    raise ImportError(f"this model's code needs transformers 5 or newer, here is {transformers.__version__}")

Shape = dict[str, Any]

HEADS = ("lm_head", "ctc_head", "encoder_projector")
"""What reads an encoder's output in the recognisers around it."""


def size(kept: int | list[int]) -> int:
    return kept if isinstance(kept, int) else len(kept)


def resize(module: Any, *, reads: int | None = None, writes: int | None = None) -> None:
    """Gives a linear layer, a convolution or a norm other sizes, in place, with fresh weights.

    reads, writes: channels, None for as many as there are; a norm and a depthwise convolution write what they read.
    """
    if isinstance(module, nn.Linear):
        module.in_features = module.in_features if reads is None else reads
        module.out_features = module.out_features if writes is None else writes
        shape: tuple[int, ...] = (module.out_features, module.in_features)
    elif isinstance(module, nn.Conv1d | nn.Conv2d):
        if module.groups > 1:
            assert module.groups == module.in_channels == module.out_channels, "neither dense nor depthwise"
            module.groups = module.in_channels = writes if writes is not None else module.in_channels
        module.in_channels = module.in_channels if reads is None else reads
        module.out_channels = module.out_channels if writes is None else writes
        shape = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
    else:
        assert writes is not None
        shape = (writes,)
        if isinstance(module, nn.LayerNorm):
            module.normalized_shape = shape
        elif isinstance(module, nn.GroupNorm):
            module.num_groups = module.num_channels = writes
        else:
            assert isinstance(module, nn.BatchNorm1d), type(module)
            module.num_features = writes
            module.running_mean, module.running_var = torch.zeros(shape), torch.ones(shape)
    if module.weight is not None:
        module.weight = nn.Parameter(torch.empty(shape))
    if module.bias is not None:
        module.bias = nn.Parameter(torch.empty(shape[0]))
    module.reset_parameters()


class Constant(nn.Module):
    """What remains of a sublayer that kept no head, neuron or channel: its output bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.zeros_like(hidden) + self.bias


class Empty(nn.Module):
    """A sublayer without heads, neurons or channels; `output` is the name of what wrote its result."""

    def __init__(self, output: str, width: int) -> None:
        super().__init__()
        self.output = output
        setattr(self, output, Constant(width))

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return getattr(self, self.output)(hidden_states)  # type: ignore[no-any-return]


class EmptyAttention(Empty):
    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        return super().forward(hidden_states), None


class Removed(nn.Module):
    """A sublayer that is gone."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.zeros_like(hidden_states)


class RemovedAttention(nn.Module):
    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        return torch.zeros_like(hidden_states), None


def shrink_feed_forward(layer: Any, part: str, name: str, shape: Shape, first: str, second: str) -> None:
    """Gives the two matrices `first` and `second` of layer.part as many neurons as the axis `name`.part keeps."""
    neurons, module = size(shape[f"{name}.{part}.neurons"]), getattr(layer, part)
    if not shape[f"{name}.{part}"]:
        setattr(layer, part, Removed())
    elif neurons == 0:
        last = getattr(module, second)
        setattr(layer, part, Removed() if last.bias is None else Empty(second, last.out_features))
    else:
        resize(getattr(module, first), writes=neurons)
        resize(getattr(module, second), reads=neurons)


class RaggedConfig:
    """Mixin: in config.json a sentence stands where stock classes expect the number `sentinel`, so they stop with it.

    They would load what fits and leave the rest at random. The number itself is under the key `diminuendo`. A size that
    tokenizers are checked against (`vocab_size`) cannot be the one: transformers opens those by the configuration.
    """

    sentinel = "hidden_size"

    def to_json_string(self, *args: Any, **kwargs: Any) -> str:
        values = json.loads(super().to_json_string(*args, **kwargs))  # type: ignore[misc]
        if "diminuendo" in values:
            values["diminuendo"][self.sentinel] = values[self.sentinel]
            values[self.sentinel] = "compressed by diminuendo: load with trust_remote_code=True or diminuendo.load"
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Samples a frame, by which transformers' pipeline puts chunks together."""
        if self.diminuendo.get("input") == "fbank":  # type: ignore[attr-defined]
            return HOP * STRIDE
        return super().inputs_to_logits_ratio  # type: ignore[misc,no-any-return]

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        values = dict(config_dict)
        ours = dict(values.pop("diminuendo"))
        for key in ours.keys() - {"format", "shape", "input"}:  # the sentinel's number; it was another one's once
            values[key] = ours.pop(key)
        return super().from_dict({**values, "diminuendo": ours}, **kwargs)  # type: ignore[misc]


class Ragged:
    """Mixin: builds the stock model, then shrinks it, then prepares it again as a model of the new sizes."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        if config.diminuendo.get("input") == "fbank":
            self._hear_filter_banks()
        self._narrow(size(config.diminuendo["shape"].get("width", self.encoder_inside.config.hidden_size)))
        self.shrink(config.diminuendo["shape"])
        self._factor(config.diminuendo["shape"])
        for module in self.modules():  # type: ignore[attr-defined]
            module.__dict__.pop("_is_hf_initialized", None)  # what has other sizes is to be drawn anew
        self.post_init()  # type: ignore[attr-defined]

    def _hear_filter_banks(self) -> None:
        encoder = self.encoder_inside
        encoder.feature_extractor = FilterBankFrontEnd(*encoder.config.conv_dim)
        for module in dict.fromkeys((self, encoder)):
            module.main_input_name = "input_features"
            module.register_forward_pre_hook(as_values, with_kwargs=True)

    def _narrow(self, width: int) -> None:
        """Gives all that reads or writes the residual stream its width, while the stock modules are still there."""
        encoder = self.encoder_inside
        if width == encoder.config.hidden_size:
            return
        for role, _, module in list(self.residual(encoder.config).modules(encoder)):
            resize(module, reads=width) if role == "reads" else resize(module, writes=width)
        for name in HEADS:
            if hasattr(self, name):
                resize(getattr(self, name), reads=width)
        if getattr(encoder, "masked_spec_embed", None) is not None:
            encoder.masked_spec_embed = nn.Parameter(torch.empty(width).uniform_())

    def _factor(self, shape: Shape) -> None:
        """Factors the matrices that the shape has ranks of."""
        for name, rank in shape.items():
            if name.endswith(".ranks"):
                path, _, leaf = name.removesuffix(".ranks").rpartition(".")
                parent = self.encoder_inside.get_submodule(path)
                if hasattr(parent, leaf):  # else its sublayer is gone
                    setattr(parent, leaf, LowRank(getattr(parent, leaf), rank))

    def shrink(self, shape: Shape) -> None:
        """Gives the modules of the freshly built model the sizes of `shape`; weights are to be loaded or drawn."""
        raise NotImplementedError

    @staticmethod
    def residual(config: Any) -> Residual:
        """What reads and writes the residual stream of an encoder of this configuration."""
        raise NotImplementedError

    @property
    def encoder_inside(self) -> Any:
        """The encoder of a recogniser; an encoder itself."""
        return getattr(self, self.base_model_prefix, self)  # type: ignore[attr-defined]

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # transformers reads this file for an attention that asks for its implementation; that of the stock class does.
        return True
