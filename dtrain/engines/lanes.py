"""A model that is whole on every rank, and whose gradients are summed in an order that knows no ranks."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from dtrain.engines.held import Build
from dtrain.engines.statistics import IDLE
from dtrain.engines.whole import Whole

PIECE = 2**22  # numbers of a gradient that go over the ranks at a time, of each lane

Lane = dict[str, Tensor]  # by parameter, the sum of a lane's gradients
Stretch = list[tuple[str, int, int]]  # of flat gradients: a parameter, from where, to where


class InLanes(Whole):
    """Micro-batch n is of lane n modulo their number: lanes are summed in the order of their micro-batches,
    and then one after the other.

    A rank has whole lanes, as their number is a multiple of the ranks' and its micro-batches are those equal
    to its own number modulo theirs. Every rank gets all lanes of a share of the numbers, adds them, and tells
    the others: as many bytes go over the ranks as an all-reduce moves, times the lanes of a rank. A sum
    begins with 0, as what a lane lacks is 0 elsewhere, and -0 plus 0 is another number than -0.
    """

    mean_over = 1
    needs_rehearsal = False

    def __init__(
        self, name: str, module: nn.Module, build: Build | None, accelerator: Accelerator, lanes: int
    ):
        super().__init__(module, build, accelerator.device)
        self.wrapped = self.module  # DDP's sums go by the number of ranks
        self.accelerator = accelerator
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.count = lanes
        self.lanes: dict[int, Lane] = {}

    @contextmanager
    def accumulating(self, number: int, is_last: bool) -> Iterator[None]:
        lane: Lane = {} if number == IDLE else self.lanes.setdefault(number % self.count, {})
        for name, gradient in lane.items():
            self.trained[name].grad = gradient
        yield
        for name, parameter in self.trained.items():
            if parameter.grad is not None:
                lane[name], parameter.grad = parameter.grad, None

    def reduce(self) -> None:
        sums = self._added() if self.world == 1 else self._gathered()
        for name, gradient in sums.items():
            self.trained[name].grad = gradient
        self.lanes.clear()

    def clear(self) -> None:
        super().clear()
        self.lanes.clear()

    def _added(self) -> Lane:
        """The sum of all lanes, which this rank has alone."""
        total: Lane = {}
        for _, lane in sorted(self.lanes.items()):
            first = [name for name in lane if name not in total]
            others = [name for name in lane if name in total]
            if others:
                torch._foreach_add_([total[name] for name in others], [lane[name] for name in others])
            if first:
                begun = torch._foreach_add([lane[name] for name in first], 0.0)
                total.update(zip(first, begun, strict=True))
        return total

    def _gathered(self) -> Lane:
        """The sum of the lanes of all ranks, of what a gradient reached on any of them. Collective."""
        own = [self.lanes.get(lane, {}) for lane in range(self.rank, self.count, self.world)]
        like = {name: self.trained[name] for name in self._reached()}
        flat = {name: parameter.new_empty(parameter.numel()) for name, parameter in like.items()}
        for stretch in stretches(flat, PIECE):
            summed = self._summed(own, stretch)
            for name, start, stop in stretch:
                flat[name][start:stop], summed = summed[: stop - start], summed[stop - start :]
        return {name: laid_out(flat[name], parameter) for name, parameter in like.items()}

    def _reached(self) -> list[str]:
        """The parameters of which any rank has a gradient; a device is not waited for."""
        reached = set().union(*self.lanes.values())
        marks = torch.tensor([name in reached for name in self.trained], dtype=torch.uint8)
        dist.all_reduce(marks, dist.ReduceOp.MAX)
        return [name for name, mark in zip(self.trained, marks.tolist(), strict=True) if mark]

    def _summed(self, own: Sequence[Lane], stretch: Stretch) -> Tensor:
        """The sum of all lanes over one stretch, (numbers,)."""
        name, _, _ = stretch[0]
        size = sum(stop - start for _, start, stop in stretch)
        each = -(-size // self.world)  # numbers that a rank adds
        rows = self.trained[name].new_zeros(len(own), self.world * each)
        for row, lane in zip(rows, own, strict=True):
            for name, start, stop in stretch:
                if name in lane:
                    row[: stop - start] = lane[name].reshape(-1)[start:stop]
                row = row[stop - start :]
        sent = rows.view(len(own), self.world, each).transpose(0, 1).contiguous()
        received = torch.empty_like(sent)  # (world, own, each): lane j * world + r at [r, j]
        dist.all_to_all_single(received, sent)
        total = torch.zeros_like(received[0, 0])
        for lane in received.transpose(0, 1).flatten(0, 1):
            total += lane
        whole: Tensor = self.accelerator.gather(total)
        return whole[:size]


def stretches(tensors: Mapping[str, Tensor], most: int) -> Iterator[Stretch]:
    """All numbers of flat tensors, in order, at most so many at a time, and all of one type."""
    now: Stretch = []
    left = most
    for name, tensor in tensors.items():
        start = 0
        if now and tensor.dtype != tensors[now[0][0]].dtype:
            yield now
            now, left = [], most
        while start < len(tensor):
            stop = min(start + left, len(tensor))
            now.append((name, start, stop))
            left -= stop - start
            start = stop
            if not left:
                yield now
                now, left = [], most
    if now:
        yield now


def laid_out(flat: Tensor, like: Tensor) -> Tensor:
    """Numbers in the shape of a parameter and in its order in memory, by which norms are summed."""
    shaped = flat.view(like.shape)
    return shaped if like.is_contiguous() else torch.empty_like(like).copy_(shaped)
