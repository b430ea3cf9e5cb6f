"""Size and arithmetic of a model: parameters, bytes, multiply-accumulates per second of audio."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from diminuendo.errors import UserError
from diminuendo.families.inputs import waveform_example
from diminuendo.families.registry import find_family
from diminuendo.families.transducer import rates, run


def count_parameters(model: nn.Module) -> int:
    """Parameters of the whole saved model; a tensor that two modules share counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def saved_bytes(model: nn.Module) -> int:
    """Bytes of the tensors that safetensors stores: parameters and persistent buffers, shared ones once, no header."""
    stored = {(t.data_ptr(), t.dtype, t.shape) if t.data_ptr() else id(t): t for t in model.state_dict().values()}
    return sum(tensor.nbytes for tensor in stored.values())


def count_macs_per_second(model: PreTrainedModel, seconds: float = 10.0, sampling_rate: int = 16000) -> float:
    """Multiply-accumulates per second of audio, for one clip of `seconds`, in evaluation mode.

    The model comes back in the mode it had.

    Raises:
        UserError: as `example_inputs`.
    """
    inputs = example_inputs(model, seconds, sampling_rate)
    counter = FlopCounterMode(display=False)
    # The counter does not see the two products inside a fused attention kernel; PyTorch's own unfused form shows them
    # without touching the model's configuration, as transformers' "eager" would have to.
    with evaluating(model), sdpa_kernel(SDPBackend.MATH), torch.no_grad(), counter:
        run(model, inputs)
    return counter.get_total_flops() / 2 / seconds + _beside(model, seconds, round(seconds * sampling_rate))


def _beside(model: PreTrainedModel, seconds: float, samples: int) -> float:
    """MACs per second of what runs for every label (the flop counter would give 0 for an LSTM)."""
    family = find_family(model)
    if family is None:
        return 0.0
    frames = int(family.frame_lengths(model, torch.tensor([samples]))[0])
    found = rates(model, frames / seconds)
    return float(sum(model.get_parameter(name).numel() * rate for name, rate in found.items()))


def example_inputs(model: PreTrainedModel, seconds: float, sampling_rate: int = 16000) -> dict[str, Tensor]:
    """One clip of seeded noise, as a model of our families or any that reads waveforms wants it.

    Raises:
        UserError: the model is another, or `seconds` is not positive.
    """
    if seconds <= 0:
        raise UserError(f"the clip to profile must last more than 0 seconds, got {seconds}; 10 is usual")
    family = find_family(model)
    inputs = (waveform_example if family is None else family.example)(model, round(seconds * sampling_rate))
    if model.main_input_name not in inputs:
        raise UserError(
            f"profiling needs a model that reads waveforms (input_values), got {type(model).__name__}, which reads "
            f"{model.main_input_name}; profile one of the supported families"
        )
    return inputs


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module has the mode it had, a mixture included."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
