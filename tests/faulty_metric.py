"""A metric with a fault on one rank, by itself as torchmetrics takes seconds to come."""

import time

import torch
from faulty_data import is_rank
from torchmetrics import Metric


class Failing(Metric):
    """A metric that cannot be computed on one rank once something was measured by it."""

    def __init__(self, rank: int):
        super().__init__()
        self.rank, self.count = rank, 0
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, predicted: torch.Tensor, target: torch.Tensor) -> None:
        self.count += 1
        if is_rank(self.rank) and self.count > 1:
            raise ArithmeticError("this rank cannot measure")
        self.total += predicted.sum()

    def compute(self) -> torch.Tensor:
        return self.total


class Sleeping(Failing):
    """A metric that takes very long to measure anything."""

    def update(self, predicted: torch.Tensor, target: torch.Tensor) -> None:
        time.sleep(1000)
