"""The precisions of a run: what each means, and whether a device has it."""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from dtrain.backends.torch_attacks import full_precision
from dtrain.errors import RecipeError

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str, device: torch.device) -> None:
    """Raise RecipeError if a device lacks a precision; CPUs have all but tf32."""
    is_cuda, is_metal = device.type == "cuda", device.type == "mps"
    # What CUDA emulates is slower than fp32, and nobody asks for bf16 to be slower.
    if precision == "bf16" and is_cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        found = f"{torch.cuda.get_device_name(device)} has no bf16"
        raise RecipeError("train.precision", f'{found}; "fp16" or "fp32" would do')
    if precision == "fp64" and is_metal:
        raise RecipeError("train.precision", 'GPUs of Apple have no fp64; "fp32" would do, or the CPU')
    if precision == "tf32" and is_cuda and not torch.cuda.is_tf32_supported():
        found = f"{torch.cuda.get_device_name(device)} has no tf32, which came with NVIDIA's Ampere"
        raise RecipeError("train.precision", f'{found}; "fp16" or "fp32" would do')
    if precision == "tf32" and not is_cuda:
        found = "GPUs of Apple have" if is_metal else "the run is on the CPU, which has"
        raise RecipeError("train.precision", f'{found} no tf32; "fp32" would do')


def set_products(precision: str) -> None:
    """Say, for the whole process, whether GPUs round what they multiply in fp32 to tf32.

    cuDNN's convolutions otherwise do so in silence.
    """
    # torch makes these names at import. A part that was set by itself does not follow the whole any more.
    torch.backends.fp32_precision = "ieee"  # type: ignore[attr-defined]
    rounding = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = rounding
    torch.backends.cudnn.fp32_precision = rounding


def in_full(module: nn.Module, inputs: Any, output: Any) -> Any:
    """What a model gives, in full precision where it is in half: a forward hook."""
    return tree_map_only(Tensor, _full, output)


def compute_in_full(module: nn.Module, device: torch.device) -> None:
    """Let a module compute in fp32 what it is given, whatever others around it do."""
    forward = module.forward

    @functools.wraps(forward)
    def computed(*inputs: Any, **named: Any) -> Any:
        inputs, named = tree_map_only(Tensor, _full, (inputs, named))
        with full_precision(device):
            return forward(*inputs, **named)

    module.forward = computed


def _full(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in HALF.values() else tensor
