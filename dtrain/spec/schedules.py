"""Learning-rate schedules: pure functions from the step to a factor of the learning rate.

A schedule has no state, so it needs no checkpoint and means the same on every backend.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any

from dtrain.spec.table import Fraction, Natural, OneOf, Table, Wrong, kind, table


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
    floor: Fraction = 0.0  # factor at the last step

    def __call__(self, step: int, total: int) -> float:
        fall = 1 - (1 - self.floor) * share_done(step, total, self.warmup)
        return rise(step, self.warmup) * fall


@kind(Schedule, "cosine")
class Cosine(Schedule):
    """Half a cosine from 1 to `floor` at the last step, after a warm-up.

    Source: Loshchilov & Hutter 2017 (arXiv:1608.03983), without restarts.
    """

    warmup: Natural = 0  # steps
    floor: Fraction = 0.0  # factor at the last step

    def __call__(self, step: int, total: int) -> float:
        half = (1 + math.cos(math.pi * share_done(step, total, self.warmup))) / 2
        return rise(step, self.warmup) * (self.floor + (1 - self.floor) * half)


@table
class ImportedSchedule(Table):
    """A scheduler class given by its import path, such as `torch.optim.lr_scheduler:StepLR`.

    It is stepped once after every step of dtrain. With `monitor` it is stepped after every evaluation
    instead, and given that metric: for `torch.optim.lr_scheduler:ReduceLROnPlateau`.
    """

    path: str
    arguments: Mapping[str, Any]  # its keyword arguments, but for `optimizer`
    monitor: str | None = None  # a metric of evaluation, such as "evaluate/loss"

    def __post_init__(self) -> None:
        module, _, name = self.path.partition(":")
        if f"{module}.".startswith("torch.optim."):  # of others only their signature tells
            problem = monitor_problem(self.path, self.monitor, takes_metric=name == "ReduceLROnPlateau")
            if problem:
                raise Wrong("monitor", problem, is_key=self.monitor is not None)


def monitor_problem(path: str, monitor: str | None, *, takes_metric: bool) -> str | None:
    """What is wrong with the metric that a schedule is to go by; None if nothing is."""
    if takes_metric and monitor is None:
        return f'{path} goes by a metric of evaluation; monitor = "evaluate/loss" would do'
    if monitor is not None and not takes_metric:
        return f"{path} goes by steps and takes no metric; leave `monitor` out"
    return None


AnySchedule = Annotated[Schedule | ImportedSchedule, OneOf(Schedule, ImportedSchedule)]
