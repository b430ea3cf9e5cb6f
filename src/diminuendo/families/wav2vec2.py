"""HuBERT, wav2vec 2.0, UniSpeech-SAT: seven convolutions on the waveform, a positional convolution, transformer layers.

Base models norm the first convolution over time (group norm) and the layers after each sublayer; large models norm
every convolution over channels and the layers before each sublayer. Both are one code, here as in transformers.

The positional convolution's axis is its groups. Outer taps would be the other choice, but taps are not
interchangeable (only the outermost can go), while a group reads and writes channels of its own: 1/16 of the
convolution's parameters and of its work.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import (
    HubertForCTC,
    HubertModel,
    UniSpeechSatForCTC,
    UniSpeechSatModel,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
)

from diminuendo.families.family import Family, Model
from diminuendo.modules import ragged_wav2vec2 as ragged
from diminuendo.structure.axis import Axis, Product, Slice


def _whole(module: nn.Module, name: str) -> tuple[Slice, ...]:
    return tuple(Slice(f"{name}.{parameter}", None) for parameter, _ in module.named_parameters())


def _vector(module: Any, name: str, block: int = 1) -> tuple[Slice, ...]:
    """The slices along the first dimension of a module's weight and bias."""
    return tuple(Slice(f"{name}.{part}", 0, block) for part in ("weight", "bias") if getattr(module, part) is not None)


def _front_end_axes(base: Any, prefix: str) -> Iterator[Axis]:
    layers = base.feature_extractor.conv_layers
    for i, layer in enumerate(layers):
        here = f"{prefix}feature_extractor.conv_layers.{i}"
        slices, norms = _vector(layer.conv, f"{here}.conv"), []
        norm = getattr(layer, "layer_norm", None)
        if norm is not None:
            slices += _vector(norm, f"{here}.layer_norm")
            if isinstance(norm, nn.LayerNorm):  # the group norm has one group per channel: nothing is shared
                norms.append(f"{here}.layer_norm")
        if i + 1 < len(layers):
            reader = f"{prefix}feature_extractor.conv_layers.{i + 1}.conv.weight"
        else:
            reader = f"{prefix}feature_projection.projection.weight"
            if hasattr(base.feature_projection, "layer_norm"):
                slices += _vector(base.feature_projection.layer_norm, f"{prefix}feature_projection.layer_norm")
                norms.append(f"{prefix}feature_projection.layer_norm")
        gate = Slice(reader, 1)
        yield Axis(
            f"feature_extractor.conv_layers.{i}.channels",
            "channels",
            layer.conv.out_channels,
            slices=(*slices, gate),
            gates=(gate,),
            norms=tuple(norms),
            minimum=1,
        )


def _positional_axis(base: Any, prefix: str) -> Iterator[Axis]:
    module = base.encoder.pos_conv_embed
    kept = getattr(module, "kept", None)
    if kept == []:
        return
    conv, here = module.conv, f"{prefix}encoder.pos_conv_embed"
    block = conv.out_channels // conv.groups
    gates = slices = _vector(conv, f"{here}.conv", block)
    if getattr(module, "batch_norm", None) is not None:  # before the convolution, channel by channel
        slices += _vector(module.batch_norm, f"{here}.batch_norm", block)
        slices += tuple(Slice(f"{here}.batch_norm.{part}", 0, block) for part in ("running_mean", "running_var"))
        slices += (Slice(f"{here}.batch_norm.num_batches_tracked", None),)
    positions = tuple(kept if kept is not None else range(conv.groups))
    yield Axis("encoder.pos_conv_embed.groups", "groups", conv.groups, slices, gates, positions=positions)


def _attention_axes(layer: Any, name: str, prefix: str, norm: tuple[Slice, ...]) -> Iterator[Axis]:
    attention, here = layer.attention, f"{prefix}{name}"
    whole = _whole(attention, here)
    if not whole:
        return
    output = tuple(piece for piece in whole if ".out_proj." in piece.parameter)
    yield Axis(name, "sublayer", 1, slices=whole + norm, gates=output)
    if not hasattr(attention, "q_proj"):
        return
    block = attention.head_dim
    gate = Slice(f"{here}.out_proj.weight", 1, block)
    slices = tuple(
        s for part in ("q_proj", "k_proj", "v_proj") for s in _vector(getattr(attention, part), f"{here}.{part}", block)
    )
    heads = attention.q_proj.out_features // block
    yield Axis(f"{name}.heads", "heads", heads, slices=(*slices, gate), gates=(gate,), parent=name)


def _feed_forward_axes(layer: Any, name: str, prefix: str, norm: tuple[Slice, ...]) -> Iterator[Axis]:
    feed_forward, here = layer.feed_forward, f"{prefix}{name}"
    whole = _whole(feed_forward, here)
    if not whole:
        return
    output = tuple(piece for piece in whole if ".output_dense." in piece.parameter)
    yield Axis(name, "sublayer", 1, slices=whole + norm, gates=output)
    if not hasattr(feed_forward, "intermediate_dense"):
        return
    gate = Slice(f"{here}.output_dense.weight", 1)
    slices = _vector(feed_forward.intermediate_dense, f"{here}.intermediate_dense")
    neurons = feed_forward.intermediate_dense.out_features
    yield Axis(f"{name}.neurons", "neurons", neurons, slices=(*slices, gate), gates=(gate,), parent=name)


def _encoder(model: Model) -> tuple[Any, str]:
    """The encoder, and the prefix of its parameters' names."""
    base = getattr(model, model.base_model_prefix, model)
    return base, "" if base is model else f"{model.base_model_prefix}."


def axes(model: Model) -> tuple[Axis, ...]:
    """The axes of an encoder or of the recogniser around it, in the order of the signal."""
    base, prefix = _encoder(model)
    found = [*_front_end_axes(base, prefix), *_positional_axis(base, prefix)]
    for i, layer in enumerate(base.encoder.layers):
        name = f"encoder.layers.{i}"
        norms: tuple[tuple[Slice, ...], tuple[Slice, ...]] = ((), ())
        if base.config.do_stable_layer_norm:  # pre-norm: the norm before a sublayer goes with it
            norms = (
                _whole(layer.layer_norm, f"{prefix}{name}.layer_norm"),
                _whole(layer.final_layer_norm, f"{prefix}{name}.final_layer_norm"),
            )
        found += _attention_axes(layer, f"{name}.attention", prefix, norms[0])
        found += _feed_forward_axes(layer, f"{name}.feed_forward", prefix, norms[1])
    return tuple(found)


def products(model: Model, frames: int, seconds: float) -> tuple[Product, ...]:
    """Queries times keys, and weights times values: frames x frames x head width each, for every head."""
    base, _ = _encoder(model)
    found = []
    for i, layer in enumerate(base.encoder.layers):
        name, attention = f"encoder.layers.{i}.attention", layer.attention
        if hasattr(attention, "q_proj"):
            macs = 2.0 * frames * frames * attention.head_dim / seconds
            found.append(Product(f"{name}.heads", attention.q_proj.out_features // attention.head_dim, macs, name))
    return tuple(found)


def plain(model: Model) -> Model:
    """A deep copy in evaluation mode, the positional convolution's weight norm (it spans groups) multiplied out."""
    copied = copy.deepcopy(model)
    positional = _encoder(copied)[0].encoder.pos_conv_embed
    conv = getattr(positional, "conv", None)
    if conv is not None and parametrize.is_parametrized(conv):
        # Not by remove_parametrizations: a copy shares its class with the original, and that would strip both.
        positional.conv = nn.Conv1d(
            conv.in_channels, conv.out_channels, conv.kernel_size[0], padding=conv.padding[0], groups=conv.groups
        ).to(conv.weight)
        positional.conv.load_state_dict({"weight": conv.weight.detach(), "bias": conv.bias.detach()})
    return copied.eval()


def hidden_states(model: Model, inputs: Mapping[str, Tensor]) -> tuple[Float[Tensor, "batch frames dim"], ...]:
    """The feature projection's output (before the positional convolution), then every layer's output.

    The last one is the encoder's output: for pre-norm models after the final norm. A recogniser's head does not run.
    With `mask_time_indices` among the inputs the first one is as it was before masking.
    """
    base, _ = _encoder(model)
    states: list[Tensor] = []

    def catch(module: nn.Module, args: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    def catch_projection(module: nn.Module, args: Any, output: Any) -> None:
        catch(module, args, output)
        if "mask_time_indices" in inputs:
            states[0] = states[0].clone()  # transformers writes the mask's embedding into the tensor itself

    hooks = [module.register_forward_hook(catch) for module in base.encoder.layers]
    hooks.append(base.feature_projection.register_forward_hook(catch_projection))
    hooks.append(base.encoder.register_forward_hook(lambda module, args, output: states.append(output[0])))
    try:
        base(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    encoded = states.pop()
    return (*states[:-1], encoded)


def frame_lengths(model: Model, sample_lengths: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    base, _ = _encoder(model)
    lengths = sample_lengths
    for layer in base.feature_extractor.conv_layers:
        lengths = (lengths - layer.conv.kernel_size[0]) // layer.conv.stride[0] + 1
    return lengths


def _family(model_type: str, encoder: type[nn.Module], ctc: type[nn.Module], name: str) -> Family:
    return Family(
        model_type=model_type,
        encoder_class=encoder,
        ctc_class=ctc,
        ragged_config_class=getattr(ragged, f"Ragged{name}Config"),
        ragged_encoder_class=getattr(ragged, f"Ragged{name}Model"),
        ragged_ctc_class=getattr(ragged, f"Ragged{name}ForCTC"),
        plain=plain,
        axes=axes,
        products=products,
        hidden_states=hidden_states,
        frame_lengths=frame_lengths,
    )


HUBERT = _family("hubert", HubertModel, HubertForCTC, "Hubert")
WAV2VEC2 = _family("wav2vec2", Wav2Vec2Model, Wav2Vec2ForCTC, "Wav2Vec2")
UNISPEECH_SAT = _family("unispeech-sat", UniSpeechSatModel, UniSpeechSatForCTC, "UniSpeechSat")
