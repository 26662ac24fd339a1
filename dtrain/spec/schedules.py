"""Schedules: pure functions from the step to a factor, of a learning rate or of a weight.

A schedule has no state, so it needs no checkpoint and means the same on every backend. What else a learning
rate may go by stands in `rates`.
"""

import dataclasses
import math
from abc import abstractmethod
from typing import Annotated, Any, Literal, TypeVar

from dtrain.spec.lengths import Length, Pace, Period, Span, in_whole_steps, length_keys
from dtrain.spec.table import Above0, AtLeastOne, Fraction, OneOf, Rate, Table, Wrong, kind, table

Shape = Literal["linear", "cosine", "exponential", "square_root"]


@table
class RateSchedule(Table):
    """What the learning rate of an optimizer goes by."""


@table
class Schedule(RateSchedule):
    """A factor that depends on the step alone. `warmup` steps rise in a line from 1/warmup to 1."""

    @abstractmethod
    def __call__(self, step: int, total: int) -> float:
        """The factor at `step`, counted from 0, of `total` steps; its lengths are in steps (`in_steps`)."""


def rise(step: int, warmup: Length) -> float:
    """The factor of a linear warm-up: 1/warmup at step 0, 1 from step warmup - 1 on."""
    warmup = in_whole_steps(warmup)
    return min((step + 1) / warmup, 1.0) if warmup else 1.0


def share_done(step: int, total: int, warmup: Length) -> float:
    """How much of what follows the warm-up is done, from 0 to 1 at the last step."""
    warmup = in_whole_steps(warmup)
    return min(max(step - warmup, 0) / max(total - 1 - warmup, 1), 1.0)


def between(first: float, last: float, done: float, shape: Shape) -> float:
    """A value on the way from `first` to `last`, of which the share `done` is done."""
    match shape:
        case "linear":
            return first + (last - first) * done
        case "cosine":
            return last + (first - last) * (1 + math.cos(math.pi * done)) / 2
        case "exponential":
            return first * math.pow(last / first, done)
        case "square_root":
            return last + (first - last) * (1 - math.sqrt(done))


@kind(Schedule, "constant")
class Constant(Schedule):
    """1 throughout, after a warm-up if there is one."""

    warmup: Length = 0  # how long it rises

    def __call__(self, step: int, total: int) -> float:
        return rise(step, self.warmup)


@kind(Schedule, "linear")
class Linear(Schedule):
    """A line from 1 down to `floor` at the last step, after a warm-up."""

    warmup: Length = 0  # how long it rises
    floor: Fraction = 0.0  # factor at the last step

    def __call__(self, step: int, total: int) -> float:
        fall = 1 - (1 - self.floor) * share_done(step, total, self.warmup)
        return rise(step, self.warmup) * fall


@kind(Schedule, "cosine")
class Cosine(Schedule):
    """Half a cosine from 1 to `floor` at the last step, after a warm-up.

    Source: Loshchilov & Hutter 2017 (arXiv:1608.03983), without restarts.
    """

    warmup: Length = 0  # how long it rises
    floor: Fraction = 0.0  # factor at the last step

    def __call__(self, step: int, total: int) -> float:
        half = (1 + math.cos(math.pi * share_done(step, total, self.warmup))) / 2
        return rise(step, self.warmup) * (self.floor + (1 - self.floor) * half)


@kind(Schedule, "step")
class Step(Schedule):
    """Multiplied by `factor` at each of the `milestones`, or `every` so often, after a warm-up."""

    milestones: tuple[Period, ...] | None = None  # counted from the start of the run; or else every
    every: Period | None = None  # counted from the start of the run
    factor: Above0 = 0.1  # what it is multiplied by each time
    warmup: Length = 0  # how long it rises

    def __post_init__(self) -> None:
        if (self.milestones is None) == (self.every is None):
            at = "milestones" if self.milestones is None else "every"
            raise Wrong(at, "give either `milestones` or `every`")

    def __call__(self, step: int, total: int) -> float:
        if self.every is not None:
            times = step // in_whole_steps(self.every)
        else:
            times = sum(step >= in_whole_steps(milestone) for milestone in self.milestones or ())
        return rise(step, self.warmup) * math.pow(self.factor, times)


@kind(Schedule, "exponential")
class Exponential(Schedule):
    """Multiplied by `factor` in the course of `every` so many steps, smoothly, after a warm-up."""

    factor: Above0  # what it is multiplied by in the course of `every`
    every: Period = 1  # how long that takes
    warmup: Length = 0  # how long it rises

    def __call__(self, step: int, total: int) -> float:
        after = max(step - in_whole_steps(self.warmup), 0)
        return rise(step, self.warmup) * math.pow(self.factor, after / in_whole_steps(self.every))


@kind(Schedule, "one_cycle")
class OneCycle(Schedule):
    """From `start` up to 1 and down to `floor` at the last step: so `lr` is the highest rate.

    Of the rate alone: momentum and betas stay what they are.

    Source: Smith & Topin 2018 (arXiv:1708.07120), with the defaults of torch.optim.lr_scheduler.OneCycleLR.
    """

    rise: Length = Span(share=0.3)  # how long it rises
    start: Fraction = 0.04  # factor at the first step
    floor: Fraction = 4e-6  # factor at the last step
    shape: Literal["cosine", "linear"] = "cosine"  # of rise and fall

    def __call__(self, step: int, total: int) -> float:
        top = max(in_whole_steps(self.rise) - 1, 0)  # the step of the factor 1
        if step < top:
            return between(self.start, 1.0, step / top, self.shape)
        done = (step - top) / max(total - 1 - top, 1)
        return between(1.0, self.floor, min(done, 1.0), self.shape)


@kind(Schedule, "warmup_stable_decay")
class WarmupStableDecay(Schedule):
    """1 between a warm-up and a decay, the last steps of the run, which end at `floor`.

    Source: Hu et al. 2024 (arXiv:2404.06395); `square_root` is Hägele et al. 2024 (arXiv:2405.18392).
    """

    warmup: Length = 0  # how long it rises
    decay: Length = Span(share=0.1)  # how long it falls
    floor: Fraction = 0.0  # factor at the last step
    shape: Shape = "linear"  # of the fall; exponential needs a floor above 0

    def __post_init__(self) -> None:
        if self.shape == "exponential" and not self.floor:
            raise Wrong("floor", "an exponential fall never reaches 0; a number above 0 would do")

    def __call__(self, step: int, total: int) -> float:
        decay = in_whole_steps(self.decay)
        done = max(step + 1 - (total - decay), 0) / decay if decay else 0.0
        return rise(step, self.warmup) * between(1.0, self.floor, min(done, 1.0), self.shape)


OfSteps = Annotated[Schedule, OneOf(Schedule, imported=None)]


@table
class Part(Table):
    """One schedule of a sequence."""

    length: Period | None = None  # how long it lasts; the last goes to the end and has none
    schedule: OfSteps  # which takes its part for the whole run
    factor: Rate = 1.0  # what all its factors are multiplied by


@kind(Schedule, "sequence")
class Sequence(Schedule):
    """Several schedules in a row: each but the last has a length, and takes its part for the whole run."""

    parts: Annotated[tuple[Part, ...], AtLeastOne()]  # in their order

    def __post_init__(self) -> None:
        for number, part in enumerate(self.parts[:-1]):
            if part.length is None:
                raise Wrong(f"parts[{number}].length", "required, but missing; the last part alone has none")
        if self.parts and self.parts[-1].length is not None:
            said = "the last part goes to the end of the run; leave its length out"
            raise Wrong(f"parts[{len(self.parts) - 1}].length", said, is_key=True)

    def __call__(self, step: int, total: int) -> float:
        first = 0
        for part in self.parts:
            length = total - first if part.length is None else in_whole_steps(part.length)
            if part.length is None or step < first + length:
                break
            first += length
        return part.factor * part.schedule(step - first, length)


S = TypeVar("S", bound=RateSchedule)


def in_steps(schedule: S, pace: Pace) -> S:
    """The same schedule with all its lengths in steps, as it is called in a run of this pace."""
    if isinstance(schedule, Sequence):
        parts = [
            dataclasses.replace(
                part,
                length=None if part.length is None else own.total,
                schedule=in_steps(part.schedule, own),
            )
            for part, own in paces(schedule, pace)
        ]
        return dataclasses.replace(schedule, parts=tuple(parts))
    own = {key: _in_steps(getattr(schedule, key), pace) for key in length_keys(type(schedule))}
    return dataclasses.replace(schedule, **own)


def _in_steps(lengths: Any, pace: Pace) -> Any:
    if isinstance(lengths, tuple):
        return tuple(map(pace.steps, lengths))
    return None if lengths is None else pace.steps(lengths)


def paces(sequence: Sequence, pace: Pace) -> list[tuple[Part, Pace]]:
    """Each part of a sequence, with the pace of a run that is as long as the part."""
    found, left = [], pace.total
    for part in sequence.parts:
        steps = left if part.length is None else pace.steps(part.length)
        found.append((part, dataclasses.replace(pace, total=steps)))
        left -= steps
    return found
