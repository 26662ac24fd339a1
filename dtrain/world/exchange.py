"""Values that ranks tell each other: as JSON, or arrays as they are.

Accelerate's gather_object pickles, and to unpickle is to run what another rank sent.
"""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, distributed


def gather_json(value: Any, accelerator: Accelerator) -> list[Any]:
    """Every rank's value, on every rank, by rank."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = accelerator.gather(torch.tensor([len(text)], device=accelerator.device)).tolist()
    row = torch.zeros(1, max(sizes), dtype=torch.uint8, device=accelerator.device)
    row[0, : len(text)] = torch.from_numpy(text.copy())
    rows = accelerator.gather(row).cpu().numpy()  # (world, bytes)
    return [json.loads(text[:size].tobytes()) for text, size in zip(rows, sizes, strict=True)]


def open_gather(world: int, timeout: timedelta) -> Callable[[Any], list[Any]]:
    """A way to gather JSON for a thread of each rank, whatever the main threads exchange. Collective."""
    if world == 1:
        return lambda value: [value]
    group = distributed.new_group(backend="gloo", timeout=timeout)

    def gather(value: Any) -> list[Any]:
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world)]
        distributed.all_gather(sizes, torch.tensor([len(text)]), group=group)
        longest = max(int(size) for size in sizes)
        rows = [torch.zeros(longest, dtype=torch.uint8) for _ in range(world)]
        own = torch.zeros(longest, dtype=torch.uint8)
        own[: len(text)] = text
        distributed.all_gather(rows, own, group=group)
        return [json.loads(row[: int(size)].numpy().tobytes()) for row, size in zip(rows, sizes, strict=True)]

    return gather


def gather_arrays(array: Tensor, accelerator: Accelerator) -> list[Tensor]:
    """Every rank's array, on every rank, by rank; they may differ in length, but not in their other axes.

    An empty array of one axis stands for nothing at all, and becomes one of the others' type and axes.
    Raises ValueError, on every rank, where two do not agree.
    """
    own = (list(array.shape), str(array.dtype).removeprefix("torch."))
    said: list[tuple[list[int], str]] = [(shape, dtype) for shape, dtype in gather_json(own, accelerator)]
    shape, dtype = next((each for each in said if each[0] != [0]), own)
    if array.shape == (0,):
        array = array.new_zeros((0, *shape[1:]), dtype=getattr(torch, dtype))
    if wrong := [each for each in said if each[0] != [0] and (each[0][1:], each[1]) != (shape[1:], dtype)]:
        raise ValueError(f"ranks hold arrays of {shape} {dtype} and of {wrong[0][0]} {wrong[0][1]}")
    if not shape:
        return list(accelerator.gather(array[None]))
    lengths = [each[0][0] for each in said]
    padded = array.new_zeros((max(lengths), *shape[1:]))
    padded[: len(array)] = array
    rows = accelerator.gather(padded).split(max(lengths)) if max(lengths) else [array] * len(said)
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]
