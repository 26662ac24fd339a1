"""Which examples an update uses: a pure function of the seed and the update's number.

So the position in the data is one integer, and neither the number of devices nor that of
loading processes changes what an update sees.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np

from dtrain.spec.keys import generator


class MicroBatch(NamedTuple):
    """What one device sees in one forward pass."""

    number: int  # among those of all ranks, from 0
    indices: np.ndarray  # (examples,)
    epoch: int
    idle: bool  # micro-batch 0 again, of weight zero, to keep collectives in step


class Shares(Protocol):
    """An order of examples, cut up for ranks."""

    def share(self, update: int, rank: int, world: int) -> list[MicroBatch]:
        """The micro-batches of one rank, as many as every other rank has; none past the end."""
        ...


@dataclass(frozen=True)
class Order:
    """The order of training: endless, reshuffled every epoch, no example repeated or skipped within one.

    The last batch of an epoch is smaller where `batch_size` does not divide `examples`.
    """

    examples: int
    batch_size: int
    micro_batch_size: int
    seed: int

    @property
    def updates_per_epoch(self) -> int:
        return -(-self.examples // self.batch_size)

    def size(self, update: int) -> int:
        """Examples of the whole update, over all ranks."""
        first = update % self.updates_per_epoch * self.batch_size
        return min(self.batch_size, self.examples - first)

    def share(self, update: int, rank: int, world: int) -> list[MicroBatch]:
        """The micro-batches whose number is `rank` modulo `world`, and an idle one where that is one too few.

        Ranks that all run equally many forward passes cannot wait for each other forever, as
        those of a sharded model otherwise would.
        """
        epoch, position = divmod(update, self.updates_per_epoch)
        first = position * self.batch_size
        batch = _permutation(self.seed, epoch, self.examples)[first : first + self.batch_size]
        micro = self.micro_batch_size
        count = -(-len(batch) // micro)
        share = [
            MicroBatch(number, batch[number * micro : (number + 1) * micro], epoch, False)
            for number in range(rank, count, world)
        ]
        if len(share) * world < count:
            share.append(MicroBatch(0, batch[:micro], epoch, True))
        return share


@dataclass(frozen=True)
class Sweep:
    """The order of evaluation: every example once, as stored. An "update" is one micro-batch per rank."""

    examples: int
    micro_batch_size: int

    def share(self, update: int, rank: int, world: int) -> list[MicroBatch]:
        """One micro-batch, idle for ranks beyond the last example; none after the sweep's end."""
        number = update * world + rank
        first, micro = number * self.micro_batch_size, self.micro_batch_size
        if update * world * micro >= self.examples:
            return []
        if first >= self.examples:
            return [MicroBatch(0, np.arange(min(micro, self.examples)), 0, True)]
        return [MicroBatch(number, np.arange(first, min(first + micro, self.examples)), 0, False)]


# Two, because loading ahead crosses from one epoch into the next and the update may still be in the first.
@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, examples: int) -> np.ndarray:
    permutation = generator(seed, "order", epoch).permutation(examples)
    permutation.setflags(write=False)  # micro-batches are views of it
    return permutation
