"""Where ZeRO keeps parameters: of each group of them one flat tensor, of which every rank has a stretch."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Piece:
    """What this rank has of one parameter, maybe nothing: `count` numbers of it, from number `first` on.

    They lie in its flat tensor of the group, from number `start` on.
    """

    shape: tuple[int, ...]  # of the whole parameter
    group: int
    start: int
    first: int
    count: int

    @property
    def size(self) -> int:
        """How many numbers the whole parameter has."""
        return prod(self.shape)

    def of(self, flat: Tensor) -> Tensor:
        """The piece in a flat tensor of its group: (count,), in the same memory."""
        return flat.detach().view(-1).narrow(0, self.start, self.count)

    def cut(self, whole: Tensor) -> Tensor:
        """The piece of the whole parameter, or of what is shaped like it: (count,)."""
        return whole.reshape(-1).narrow(0, self.first, self.count)

    def joined(self, part: Tensor) -> Tensor:
        """The whole of which every rank has a piece, to the bit. Collective."""
        whole = part.new_zeros(self.size)
        self.cut(whole).copy_(part)
        # Every number is one rank's, and 0 on the others: a sum of bits keeps it, one of fractions loses -0.
        distributed.all_reduce(whole.view(torch.int32 if whole.itemsize == 4 else torch.uint8))
        return whole.view(self.shape)
