"""Means over the micro-batches of all ranks, weighed, whatever the order and the ranks."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from dtrain.engines.arrays import sent
from dtrain.systems.base import Logs
from dtrain.world.exchange import gather_json

Terms = Sequence[tuple[Any, Logs]]  # of each micro-batch of a rank, its weight and its numbers


class Means:
    """Those of numbers that ranks have of their own micro-batches. Collective."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.world = accelerator.num_processes

    def mean(self, terms: Terms) -> dict[str, float]:
        """The means by name, as rank 0 names them; ranks have equally many terms, and names alike."""
        names = list(terms[0][1]) if terms else []
        names = gather_json(names, self.accelerator)[0] if self.world > 1 else names
        if not names:  # a system that evaluates nothing
            return {}
        weights = self._numbers([weight for weight, _ in terms])[:, None]
        rows = self._numbers([logs[name] for _, logs in terms for name in names]).reshape(len(terms), -1)
        weighed = torch.where(weights > 0, rows * weights, 0.0)  # what counts for nothing may be nan
        table = torch.cat([weighed, weights], dim=1)
        if self.world > 1:
            table = self.accelerator.gather(table)
        *sums, total = map(exact_sum, table.T.tolist())
        return {name: value / (total or 1.0) for name, value in zip(names, sums, strict=True)}

    def total_weight(self, terms: Terms, micro_batches: int) -> Tensor:
        """The sum of all weights, in float64, added in the order of the micro-batches."""
        weights = self._numbers([weight for weight, _ in terms])
        if self.world > 1:
            weights = self.accelerator.gather(weights).view(self.world, -1).T.flatten()[:micro_batches]
        return weights.sum().clamp_min(1e-12)  # where nothing has weight, nothing moves

    def _numbers(self, values: Sequence[Tensor | float]) -> Tensor:
        """Numbers and scalar arrays as one array on the device, where no value of it is waited for."""
        plain = [0.0 if isinstance(value, Tensor) else float(value) for value in values]
        on_device = sent(torch.tensor(plain, dtype=torch.float64), self.accelerator.device).unbind()
        return torch.stack(
            [
                value.double().reshape(()) if isinstance(value, Tensor) else number
                for value, number in zip(values, on_device, strict=True)
            ]
        )


def exact_sum(numbers: Sequence[float]) -> float:
    """The sum as it rounds from the exact one, so that the order, and the ranks, are of no account."""
    try:
        return math.fsum(numbers)
    except (OverflowError, ValueError):  # of inf and -inf
        return sum(numbers)
