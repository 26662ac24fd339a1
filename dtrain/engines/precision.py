"""The precisions of a run: what each means, and whether a device has it."""

from typing import Any

import torch
from torch import Tensor, nn

from dtrain.errors import RecipeError

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str, device: torch.device) -> None:
    """Raise RecipeError if a device lacks a precision; CPUs have them all."""
    is_cuda, is_metal = device.type == "cuda", device.type == "mps"
    # What CUDA emulates is slower than fp32, and nobody asks for bf16 to be slower.
    if precision == "bf16" and is_cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        found = f"{torch.cuda.get_device_name(device)} has no bf16"
        raise RecipeError("train.precision", f'{found}; "fp16" or "fp32" would do')
    if precision == "fp64" and is_metal:
        raise RecipeError("train.precision", 'GPUs of Apple have no fp64; "fp32" would do, or the CPU')


def in_full(module: nn.Module, inputs: Any, output: Any) -> Any:
    """What a model gives, in full precision where it is in half: a forward hook."""
    is_half = isinstance(output, Tensor) and output.dtype in HALF.values()
    return output.float() if is_half else output
