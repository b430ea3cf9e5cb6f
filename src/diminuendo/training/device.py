"""Where a run computes."""

import os

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from diminuendo.errors import UserError


def device_type(device: str) -> str:
    """cpu or cuda; "auto" is cuda where there is one. UserError for a device that there is not."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device}: expected auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no CUDA device that torch can use; give --device cpu")
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def make_accelerator(precision: str, device: str) -> Accelerator:
    """UserError for a precision or a device that there is not."""
    if precision not in ("fp32", "bf16"):
        raise UserError(f"--precision {precision}: expected fp32 or bf16")
    # It keeps the precision of the process's last run, and refuses another; what is below it keeps the device.
    alone = "LOCAL_RANK" not in os.environ
    AcceleratorState._reset_state(reset_partial_state=alone)
    accelerator = Accelerator(
        cpu=device_type(device) == "cpu",
        mixed_precision="bf16" if precision == "bf16" else "no",
        # Layers above the last distilled one get no gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if device not in ("auto", accelerator.device.type):
        raise UserError(f"--device {device}: accelerate chose {accelerator.device}; see its environment variables")
    return accelerator
