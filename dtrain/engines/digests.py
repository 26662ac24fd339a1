"""One number for each tensor of a state, in which no bit can change alone: cheap enough for every step.

The bits of all elements, by exclusive or: so those of the parts that ranks have make up the whole's.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from dtrain.engines.averages import Averages
from dtrain.engines.held import Held
from dtrain.engines.pieces import pieces

Digest = int | Tensor  # on a GPU () int64, for which nothing waits
WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}  # by bytes


def digests(models: Mapping[str, Held], averages: Averages, *, is_first: bool) -> dict[str, Digest]:
    """Those of all tensors by part and name; of what all ranks have alike 0 on others than the first."""
    return {
        f"{each.part}/{each.path}": digest(each.tensor)
        if is_first or (models[each.model].is_split and each.tensor.ndim > 0)
        else 0
        for each in pieces(models, averages)
    }


def digest(tensor: Tensor) -> Digest:
    """The digest of one tensor, or of a part of one."""
    if tensor.numel() == 0:
        return 0
    if tensor.is_cuda:
        return torch.hash_tensor(tensor).view(torch.int64)
    words = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return int(np.bitwise_xor.reduce(words.view(WORDS.get(tensor.itemsize, np.uint8))))


def numbers_of(digests: Iterable[Digest]) -> list[int]:
    """Digests as numbers: those of a device are fetched in one copy."""
    given = list(digests)
    on_device = [each for each in given if isinstance(each, Tensor)]
    fetched = iter(torch.stack(on_device).tolist() if on_device else ())
    return [next(fetched) % (1 << 64) if isinstance(each, Tensor) else each for each in given]
