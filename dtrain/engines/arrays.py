"""Arrays of NumPy as tensors on a device, which is not waited for."""

import numpy as np
import torch
from torch import Tensor

from dtrain.data.source import Batch


def put(batch: Batch, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """The arrays of a batch; fractions in the precision of the models."""
    tensors = {}
    for name, array in batch.items():
        tensor = sent(torch.from_numpy(np.ascontiguousarray(array)), device)
        tensors[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return tensors


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; to a GPU out of pinned memory, so that nothing waits for the copy."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
