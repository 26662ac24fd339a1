"""Learning-rate schedules: pure functions from the step to a factor of the learning rate.

A schedule has no state, so it needs no checkpoint and means the same on every backend.
"""

import math
from abc import abstractmethod

from dtrain.spec.table import Fraction, Natural, Table, kind


class Schedule(Table):
    """A factor of the learning rate. `warmup` steps rise in a line from 1/warmup to 1."""

    @abstractmethod
    def __call__(self, step: int, total: int) -> float:
        """The factor at `step`, counted from 0, of `total` steps."""


def rise(step: int, warmup: int) -> float:
    """The factor of a linear warm-up: 1/warmup at step 0, 1 from step warmup - 1 on."""
    return min((step + 1) / warmup, 1.0) if warmup else 1.0


def share_done(step: int, total: int, warmup: int) -> float:
    """How much of what follows the warm-up is done, from 0 to 1 at the last step."""
    return min(max(step - warmup, 0) / max(total - 1 - warmup, 1), 1.0)


@kind(Schedule, "constant")
class Constant(Schedule):
    """1 throughout, after a warm-up if there is one."""

    warmup: Natural = 0  # steps

    def __call__(self, step: int, total: int) -> float:
        return rise(step, self.warmup)


@kind(Schedule, "linear")
class Linear(Schedule):
    """A line from 1 down to `floor` at the last step, after a warm-up."""

    warmup: Natural = 0  # steps
    floor: Fraction = 0.0

    def __call__(self, step: int, total: int) -> float:
        fall = 1 - (1 - self.floor) * share_done(step, total, self.warmup)
        return rise(step, self.warmup) * fall


@kind(Schedule, "cosine")
class Cosine(Schedule):
    """Half a cosine from 1 to `floor` at the last step, after a warm-up.

    Source: Loshchilov & Hutter 2017 (arXiv:1608.03983), without restarts.
    """

    warmup: Natural = 0  # steps
    floor: Fraction = 0.0

    def __call__(self, step: int, total: int) -> float:
        half = (1 + math.cos(math.pi * share_done(step, total, self.warmup))) / 2
        return rise(step, self.warmup) * (self.floor + (1 - self.floor) * half)
