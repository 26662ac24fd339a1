"""Values of tensors in another precision."""

import torch

from dtrain.errors import CheckpointError

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def cast(name: str, values: bytearray, given: str, wanted: str) -> bytes:
    """The values of a tensor in another of the FLOATS. Raises CheckpointError, as `converted` does."""
    if not values:
        return b""
    tensor = torch.frombuffer(values, dtype=FLOATS[given])
    return converted(name, tensor, FLOATS[wanted]).view(torch.uint8).numpy().tobytes()


def converted(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A tensor in another precision. Raises CheckpointError where a finite value would become infinite."""
    made = tensor.to(dtype)
    if (made.isinf() & tensor.isfinite()).any():
        largest = float(tensor[tensor.isfinite()].abs().max())
        said = f"{name} has a value of {largest:.3g}, and {dtype} ends at {torch.finfo(dtype).max:.3g}"
        raise CheckpointError(f"{said}; bf16 or fp32 would do")
    return made
