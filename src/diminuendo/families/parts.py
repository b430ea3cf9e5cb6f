"""Axes that most families have, and what else their files share.

A module is named by its path in the encoder (`name`, as axes are) and found in the model under a `prefix` before it.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from diminuendo.families.family import Model, shape_before
from diminuendo.modules.ragged import HEADS
from diminuendo.modules.residual import Residual
from diminuendo.structure.axis import Axis, Product, Slice


def encoder_in(model: Model) -> tuple[Any, str]:
    """The encoder, and the prefix of its parameters' names."""
    base = getattr(model, model.base_model_prefix, model)
    return base, "" if base is model else f"{model.base_model_prefix}."


def whole(module: nn.Module, path: str) -> tuple[Slice, ...]:
    """All parameters and buffers that are saved, as what goes with the module."""
    return tuple(Slice(f"{path}.{name}", None) for name in module.state_dict())


def along(module: Any, path: str, block: int = 1, offsets: tuple[int, ...] = (0,)) -> tuple[Slice, ...]:
    """The slices along the first dimension of a module's weight, bias and running statistics."""
    vectors = ("weight", "bias", "running_mean", "running_var")
    found = [part for part in vectors if getattr(module, part, None) is not None]
    return tuple(Slice(f"{path}.{part}", 0, block, offsets) for part in found)


def sublayer(module: nn.Module, name: str, prefix: str, output: str, norm: Sequence[Slice] = ()) -> Axis:
    """A sublayer as an axis of one. output: what writes its result; norm: what goes with it, having no other reader."""
    slices = whole(module, f"{prefix}{name}")
    gates = tuple(piece for piece in slices if piece.parameter.startswith(f"{prefix}{name}.{output}."))
    assert gates, f"{prefix}{name} has no {output}"
    return Axis(name, "sublayer", 1, slices=(*slices, *norm), gates=gates)


def feed_forward_axes(
    module: Any, name: str, prefix: str, first: str, second: str, norm: Sequence[Slice] = ()
) -> Iterator[Axis]:
    """The sublayer and its neurons. first, second: the two matrices."""
    if not list(module.parameters()):
        return
    yield sublayer(module, name, prefix, second, norm)
    if not hasattr(module, first):
        return
    inner = getattr(module, first)
    gate = Slice(f"{prefix}{name}.{second}.weight", 1)
    slices = along(inner, f"{prefix}{name}.{first}")
    yield Axis(f"{name}.neurons", "neurons", inner.out_features, (*slices, gate), gates=(gate,), parent=name)


def heads_axis(
    module: Any,
    name: str,
    prefix: str,
    inputs: Sequence[str],
    output: str,
    head_dim: int,
    more: Sequence[Slice] = (),
    minimum: int = 0,
) -> Axis:
    """The heads of an attention. inputs: the matrices that write them, output: the one that reads; more: their own.

    minimum: 1 where something serves all heads together, which would be left without use.
    """
    here = f"{prefix}{name}"
    gate = Slice(f"{here}.{output}.weight", 1, head_dim)
    slices = [piece for part in inputs for piece in along(getattr(module, part), f"{here}.{part}", head_dim)]
    heads = getattr(module, inputs[0]).out_features // head_dim
    return Axis(f"{name}.heads", "heads", heads, (*slices, *more, gate), (gate,), minimum=minimum, parent=name)


def width_axis(model: Model, encoder: Any, prefix: str, residual: Residual, *, gathered: bool) -> Axis:
    """The width of the residual stream, from the first state to the recogniser's head.

    Gates lie on what the norms write, which is all that matrices read, and on what writes the first state, since
    positional convolutions read that as it is. gathered: something reads heads or groups of the stream and has to know
    which members stay.
    """
    slices: list[Slice] = []
    gates: list[Slice] = []
    norms: list[str] = []
    size = 0
    for role, path, module in residual.modules(encoder):
        here = f"{prefix}{path}"
        pieces = (Slice(f"{here}.weight", 1),) if role == "reads" else along(module, here)
        if role == "source":
            size = module.out_features
        if role in ("source", "norms"):
            gates += pieces
        if isinstance(module, nn.LayerNorm):
            norms.append(here)
        slices += pieces
    if getattr(encoder, "masked_spec_embed", None) is not None:
        mask = Slice(f"{prefix}masked_spec_embed", 0)  # in the place of what the source writes
        slices, gates = [*slices, mask], [*gates, mask]
    if model is not encoder:
        slices += (Slice(f"{name}.weight", 1) for name in HEADS if hasattr(model, name))
    positions = None
    if gathered:
        kept = shape_before(model).get("width")
        positions = tuple(kept if isinstance(kept, list) else range(size))
    return Axis("width", "width", size, tuple(slices), tuple(gates), tuple(norms), minimum=1, positions=positions)


def sharing_copy(model: Model) -> Model:
    """A copy of the modules, its tensors those of the model."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})


def attention_product(axis: Axis, macs_per_frame: float, frames: int, seconds: float) -> Product:
    """What every head of an attention multiplies, given its multiplications for one frame."""
    return Product(axis.name, axis.size, macs_per_frame * frames / seconds, axis.parent)


def caught_states(
    run: Callable[[], Any], first: nn.Module, layers: nn.ModuleList, last: nn.Module, *, keep_first: bool = False
) -> tuple[Float[Tensor, "batch frames dim"], ...]:
    """What `first` puts out, every layer, and `last` in the place of the last layer, while `run` is called.

    keep_first: what follows writes into the first state, so it is copied.
    """
    states: list[Tensor] = []

    def catch(module: nn.Module, args: Any, output: Any) -> None:
        states.append(output if isinstance(output, Tensor) else output[0])

    def catch_first(module: nn.Module, args: Any, output: Any) -> None:
        catch(module, args, output)
        if keep_first:
            states[0] = states[0].clone()

    hooks = [module.register_forward_hook(catch) for module in (*layers, last)]
    hooks.append(first.register_forward_hook(catch_first))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    encoded = states.pop()
    return (*states[:-1], encoded)
