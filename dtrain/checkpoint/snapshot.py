"""The copy of a state from which a checkpoint is written while training goes on.

Each rank keeps buffers for its own share of the tensors, and for no more: they are allocated at the first
save and used again at every later one, as fresh memory takes several times as long to fill.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dtrain.engines.base import Engine, Part
from dtrain.format.files import PARTS, in_groups, shard_name


@dataclass(frozen=True)
class Shard:
    """One file of a checkpoint, and who writes it."""

    part: Part
    file: str
    rank: int
    names: tuple[str, ...]  # of its tensors


class Snapshot:
    """This rank's share of a state, copied."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Part, str], Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    def take(self, engine: Engine, shard_bytes: int) -> list[Shard]:
        """Copy this rank's share and return the files of all ranks. Collective: tensors may be in parts.

        On a GPU the copies are only ordered; `wait` waits for them.
        """
        sizes: dict[Part, dict[str, int]] = {part: {} for part in PARTS}
        for part, name, size in engine.sizes():
            sizes[part][name] = size
        shards = [shard for part in PARTS for shard in plan(part, sizes[part], engine.world, shard_bytes)]
        own = {(each.part, name) for each in shards if each.rank == engine.rank for name in each.names}
        self._kept = {key: kept for key, kept in self._kept.items() if key in own}
        is_on_gpu = False
        # Where models are split each is whole for a moment on every rank.
        for part, name, tensor in engine.tensors():
            if (part, name) in own:
                self._copy((part, name), tensor)
                is_on_gpu = is_on_gpu or tensor.is_cuda
        self._copied = None
        if is_on_gpu:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's has no types
            self._copied.record()
        return shards

    def _copy(self, key: tuple[Part, str], tensor: Tensor) -> None:
        kept = self._kept.get(key)
        if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._kept[key] = kept
        kept.copy_(tensor, non_blocking=True)

    def wait(self) -> None:
        """Wait until all copies are there."""
        if self._copied is not None:
            self._copied.synchronize()

    def __getitem__(self, key: tuple[Part, str]) -> Tensor:
        return self._kept[key]


def plan(part: Part, sizes: Mapping[str, int], world: int, shard_bytes: int) -> list[Shard]:
    """The files of a part: each rank's share in files of at most `shard_bytes`, or of a single tensor."""
    owners = assign(sizes, world)
    groups: list[tuple[int, list[str]]] = []
    for rank in range(world):
        own = [name for name in sorted(sizes) if owners[name] == rank]
        groups += [(rank, names) for names in in_groups(own, sizes.__getitem__, shard_bytes)]
    return [
        Shard(part, shard_name(part, number, len(groups)), rank, tuple(names))
        for number, (rank, names) in enumerate(groups, 1)
    ]


def assign(sizes: Mapping[str, int], world: int) -> dict[str, int]:
    """The rank that writes each tensor: the largest first, each to the rank with the least so far."""
    loads = [0] * world
    owners = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owners[name] = rank = loads.index(min(loads))
        loads[rank] += max(sizes[name], 1)
    return owners
