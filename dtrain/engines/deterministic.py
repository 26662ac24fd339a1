"""Kernels that give the same bits each time they run; what has none is refused by its name."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic

from dtrain.errors import RecipeError

# What torch says, on every device, of an operation or a backward that has no such kernel.
NONE = re.compile(r"(\S+) does not have a deterministic implementation")
CUBLAS = (
    "CUBLAS_WORKSPACE_CONFIG"  # without it cuBLAS may share its workspace between streams, and torch refuses
)


@contextmanager
def deterministic() -> Iterator[None]:
    """Let torch use such kernels alone, until the end of the block."""
    of_torch: Any = torch.utils.deterministic  # whose attributes are made at import
    kept = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        of_torch.fill_uninitialized_memory,
        torch.backends.cudnn.benchmark,
    )
    os.environ.setdefault(CUBLAS, ":4096:8")  # read when CUDA begins
    torch.use_deterministic_algorithms(True)
    of_torch.fill_uninitialized_memory = False  # takes time, and finds defects of torch alone
    torch.backends.cudnn.benchmark = False  # which kernel was the quickest is not the same each time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(kept[0], warn_only=kept[1])
        of_torch.fill_uninitialized_memory = kept[2]
        torch.backends.cudnn.benchmark = kept[3]


@contextmanager
def refusing(where: str) -> Iterator[None]:
    """Raise RecipeError where something inside the block has no deterministic kernel."""
    try:
        yield
    except RuntimeError as error:
        if (found := NONE.search(str(error))) is None:
            raise
        raise RecipeError(
            "train.deterministic",
            f"{where} uses {found[1]}, of which torch has no deterministic kernel for this device; another "
            "operation, or false, would do",
        ) from error
