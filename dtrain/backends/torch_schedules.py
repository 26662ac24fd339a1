"""Schedules at work: what they set in each optimizer at each step. Those of torch's kind run beside it."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler, OneCycleLR, SequentialLR

from dtrain.backends.torch_optimizers import build_optimizer
from dtrain.errors import RecipeError
from dtrain.spec.arguments import call
from dtrain.spec.groups import without_patterns
from dtrain.spec.lengths import Pace
from dtrain.spec.optimizers import Optimizer
from dtrain.spec.rates import ImportedSchedule, Plateau, monitor_problem
from dtrain.spec.schedules import Schedule, in_steps
from dtrain.spec.trust import EVERYTHING, ImportPathError, Trust
from dtrain.spec.words import nearest

Settings = Mapping[str, Any]  # of an optimizer: "lr", and what else a schedule moves, such as "betas"


class Schedules:
    """The schedules of a run of some pace, by the names of their optimizers.

    Raises RecipeError where an imported one cannot be had, or does not suit its optimizer or the run.
    """

    def __init__(self, optimizers: Mapping[str, Optimizer], pace: Pace, *, trust: Trust = EVERYTHING):
        self._at: dict[str, Callable[[int], Settings]] = {}
        self._monitored: dict[str, Monitored] = {}
        for name, spec in optimizers.items():
            place, schedule = f"optimizers.{name}.schedule", spec.schedule
            if isinstance(schedule, Schedule):
                self._at[name] = of_steps(spec.lr, in_steps(schedule, pace), pace.total)
            elif isinstance(schedule, Plateau):
                plateau = OnPlateau(spec.lr, in_steps(schedule, pace))
                self._at[name] = plateau.at
                self._monitored[name] = Monitored(place, schedule.monitor, plateau.observe)
            elif isinstance(schedule, ImportedSchedule):
                scheduler = Scheduler(name, spec, schedule, trust)
                scheduler.check_length(pace.total)
                if schedule.monitor is None:
                    self._at[name] = Stepped(scheduler).at
                else:
                    self._at[name] = scheduler.at
                    self._monitored[name] = Monitored(place, schedule.monitor, scheduler.step)

    def at(self, name: str, step: int) -> Settings:
        """What an optimizer goes by at `step`, counted from 0; steps are asked for in their order."""
        return self._at[name](step)

    @property
    def monitors(self) -> bool:
        """Whether any of them goes by a metric of evaluation."""
        return bool(self._monitored)

    def check(self, metrics: Iterable[str]) -> None:
        """Raise RecipeError where one goes by a metric that is not among those of evaluation."""
        there = list(metrics)
        for monitored in self._monitored.values():
            monitored.check(there)

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Step those that go by a metric of evaluation."""
        for monitored in self._monitored.values():
            monitored.observe(metrics[monitored.metric])

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: of each that goes by a metric, the values that it was given.

        To give them again is exact for any class, whatever it keeps inside, and gives a changed recipe the
        schedule that it asks for. (torch's own `state_dict` holds what JSON cannot, such as Counters and
        other schedules' states, and puts the old arguments back.) One that goes by steps alone is stepped
        again up to the step of the checkpoint, at some microseconds each, and needs no state.
        """
        return {name: monitored.state() for name, monitored in self._monitored.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what a checkpoint holds; one that goes by another metric now begins anew."""
        for name, monitored in self._monitored.items():
            if name in state and state[name]["metric"] == monitored.metric:
                for value in state[name]["values"]:
                    monitored.observe(float(value))


def of_steps(lr: float, schedule: Schedule, total: int) -> Callable[[int], Settings]:
    """A schedule of dtrain's own: a function of the step."""
    return lambda step: {"lr": lr * schedule(step, total)}


class OnPlateau:
    """dtrain's own plateau: a function of the step and of the evaluations so far."""

    def __init__(self, lr: float, schedule: Plateau):
        self.lr, self.schedule = lr, schedule
        self.values: list[float] = []
        self.reached = 1.0

    def at(self, step: int) -> Settings:
        """The settings at a step, since the last evaluation."""
        return {"lr": self.lr * self.schedule(step, self.reached)}

    def observe(self, value: float) -> None:
        """Take note of an evaluation."""
        self.values.append(value)
        self.reached = self.schedule.after(self.values)


class Scheduler:
    """A scheduler of torch's kind, with an optimizer of its own that it moves in place of the real one.

    The stand-in is of the same class, with the same settings and one parameter that is never trained. So a
    scheduler may move whatever it likes, momentum included, and in the real one only what was there before.
    """

    def __init__(self, name: str, spec: Optimizer, schedule: ImportedSchedule, trust: Trust):
        self.place, self.path = f"optimizers.{name}.schedule", schedule.path
        untrained = torch.nn.Parameter(torch.zeros(1, 1))  # a matrix: Muon takes nothing else
        stand_in = build_optimizer(name, without_patterns(spec), {"stand-in": untrained}, trust=trust)
        stand_in._opt_called = True  # type: ignore[attr-defined]  # or torch warns that it never steps
        (self.group,) = stand_in.param_groups
        self._moved: dict[str, Any] = {}
        self._first = {key: value for key, value in self.group.items() if key not in ("lr", "params")}
        try:
            self.scheduler: LRScheduler = call(
                self.path, schedule.arguments, "schedule", trust, optimizer=stand_in
            )
        except ImportPathError as error:
            raise RecipeError(f"{self.place}.kind", error.message, suggestion=error.suggestion) from error
        except Exception as error:  # the class is the user's
            raise RecipeError(self.place, f"{self.path}: {error}") from error
        self._check_monitor(schedule.monitor)
        self._note()

    def at(self, step: int) -> Settings:
        """Whatever it has moved so far, as it is now, at whatever step."""
        return dict(self._moved)

    def step(self, *metric: float) -> None:
        """Step it once. Raises RecipeError where it cannot."""
        try:
            self.scheduler.step(*metric)  # type: ignore[arg-type]  # torch types it as an epoch
        except Exception as error:  # the class is the user's
            raise RecipeError(self.place, f"{self.path}: {error}") from error
        self._note()

    def check_length(self, total: int) -> None:
        """Raise RecipeError if it has an end, or one inside it, and it is to go on beyond it."""
        for cycle, steps in cycles(self.scheduler, total):
            if cycle.total_steps < steps:
                whole = "the run" if cycle is self.scheduler else "its part of the run"
                said = f"OneCycleLR ends after {cycle.total_steps} steps, and {whole} has {steps}"
                raise RecipeError(self.place, f"{said}; total_steps = {steps} would do")

    def _check_monitor(self, monitor: str | None) -> None:
        parameters = inspect.signature(self.scheduler.step).parameters.values()
        takes_metric = any(p.name != "epoch" for p in parameters)
        if problem := monitor_problem(self.path, monitor, takes_metric=takes_metric):
            raise RecipeError(f"{self.place}.monitor", problem, is_key=monitor is not None)

    def _note(self) -> None:
        for key, value in self._first.items():
            if key in self._moved or self.group[key] is not value:
                self._moved[key] = self.group[key]
        self._moved["lr"] = float(self.group["lr"])


def cycles(scheduler: Any, steps: int) -> Iterator[tuple[OneCycleLR, int]]:
    """Every OneCycleLR that this is or holds, with how many of so many steps are its own: it fails beyond."""
    match scheduler:
        case OneCycleLR():
            yield scheduler, steps
        case ChainedScheduler():
            for inner in scheduler._schedulers:
                yield from cycles(inner, steps)
        case SequentialLR():
            ends = [*scheduler._milestones, steps]
            for inner, first, end in zip(scheduler._schedulers, [0, *ends], ends, strict=False):
                yield from cycles(inner, min(end, steps) - first)


class Stepped:
    """A scheduler that is stepped once after every step."""

    def __init__(self, scheduler: Scheduler):
        self.scheduler = scheduler
        self.step = 0

    def at(self, step: int) -> Settings:
        """The settings at `step`, which is none before the last one asked for."""
        assert step >= self.step
        while self.step < step:
            self.scheduler.step()
            self.step += 1
        return self.scheduler.at(step)


class Monitored:
    """What is told of a metric after every evaluation, by `tell`."""

    def __init__(self, place: str, metric: str, tell: Callable[[float], None]):
        self.place, self.metric, self.tell = place, metric, tell
        self.values: list[float] = []  # of the metric so far

    def check(self, metrics: list[str]) -> None:
        """Raise RecipeError if the metric is not among these."""
        if self.metric not in metrics:
            said = f'"{self.metric}" is not evaluated; there is {", ".join(metrics) or "nothing"}'
            near = nearest(self.metric, metrics)
            raise RecipeError(f"{self.place}.monitor", said, suggestion=near)

    def observe(self, value: float) -> None:
        """Tell the metric's value."""
        self.tell(value)
        self.values.append(value)

    def state(self) -> dict[str, Any]:
        """The metric and its values, as JSON takes them: it has no word for infinity."""
        values = [value if math.isfinite(value) else str(value) for value in self.values]
        return {"metric": self.metric, "values": values}
