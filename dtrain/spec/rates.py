"""What else a learning rate goes by than the step: a metric of evaluation, or an imported scheduler."""

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from dtrain.spec.lengths import Length
from dtrain.spec.schedules import RateSchedule, rise
from dtrain.spec.table import Fraction, Natural, OneOf, Rate, Table, Within, Wrong, kind, table


@kind(RateSchedule, "plateau")
class Plateau(RateSchedule):
    """Multiplied by `factor` whenever a metric of evaluation has not improved for long, after a warm-up.

    As torch.optim.lr_scheduler.ReduceLROnPlateau has it, but that a threshold is a share of the best value
    without its sign. The evaluation that only the end of a run brings is not among those that it goes by.
    """

    monitor: str  # a metric of evaluation, such as "evaluate/loss"
    mode: Literal["min", "max"] = "min"  # which value of it is best
    factor: Annotated[float, Within(above=0, below=1)] = 0.1  # what the rate is multiplied by each time
    patience: Natural = 10  # evaluations without improvement that are borne
    threshold: Rate = 1e-4  # share of the best value by which a better one differs at least
    cooldown: Natural = 0  # evaluations after each time that do not count
    floor: Fraction = 0.0  # lowest factor
    warmup: Length = 0  # how long it rises

    def __call__(self, step: int, reached: float) -> float:
        """The factor at `step` where evaluations have brought it down to `reached`."""
        return rise(step, self.warmup) * reached

    def after(self, values: Iterable[float]) -> float:
        """What evaluations that gave these values bring the factor down to."""
        reached, bad, cooling = 1.0, 0, 0
        best = math.inf if self.mode == "min" else -math.inf
        for value in values:
            if self._is_better(value, best):
                best, bad = value, 0
            else:
                bad += 1
            if cooling:
                cooling, bad = cooling - 1, 0
            if bad > self.patience:
                reached, bad, cooling = max(reached * self.factor, self.floor), 0, self.cooldown
        return reached

    def _is_better(self, value: float, best: float) -> bool:
        """Whether a value is better by more than the threshold; what is no number never is."""
        margin = self.threshold * abs(best) if math.isfinite(best) else 0.0
        return value < best - margin if self.mode == "min" else value > best + margin


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


AnySchedule = Annotated[RateSchedule | ImportedSchedule, OneOf(RateSchedule, ImportedSchedule)]
