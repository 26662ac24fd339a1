"""The axes of a sweep as data: what values a key of a recipe may take in its trials."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from datetime import date, time
from typing import Annotated, Any

from dtrain.spec.table import AtLeastOne, Checked, Frozen, Table, Within, Wrong, empty, table
from dtrain.spec.words import either, show

MOST_CELLS = 10_000  # values that a grid takes of one
FEW = 100  # numbers of which each is looked at before the first trial
WAYS = ("values", "uniform", "log_uniform", "range", "log_range")  # to say what a key may be
COUNTED = ("uniform", "log_uniform", "log_range")  # those of which a grid must be told how many to take


def _rising(ends: tuple[float, ...]) -> tuple[float, ...]:
    if not ends[0] < ends[1]:
        raise ValueError(f"found {show(ends)}; two ends would do, the lower one first")
    return ends


def _above_0(ends: tuple[float, ...]) -> tuple[float, ...]:
    if ends[0] <= 0:
        raise ValueError(f"found {show(ends)}; ends above 0 would do, as others have no logarithm")
    return _rising(ends)


def _in_steps(ends: tuple[int, ...]) -> tuple[int, ...]:
    if len(ends) not in (2, 3) or (len(ends) == 3 and ends[2] < 1):
        raise ValueError(f"found {show(ends)}; [first, last] or [first, last, step] would do")
    _rising(ends[:2])
    if len(ends) == 3 and (left := (ends[1] - ends[0]) % ends[2]):
        raise ValueError(
            f"steps of {ends[2]} from {ends[0]} do not reach {ends[1]}; {ends[1] - left} would do"
        )
    return ends


def _of_toml(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Values that a recipe can have, JSON can keep, and of which none is another."""
    for number, value in enumerate(values):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"found {show(value)}; a finite number would do")
        if isinstance(value, date | time):
            raise ValueError(f"found {show(value)}; no key of a recipe takes a date or a time")
        if any(same(value, other) for other in values[:number]):
            raise ValueError(f"found {show(value)} twice; each value once would do")
    return values


Values = Annotated[tuple[Any, ...], AtLeastOne(), Checked(_of_toml)]


@table
class Axis(Table):
    """What a key may be: one of some values, a number between two ends, or what another axis makes it."""

    # one of these; an array in place of the table says the same
    values: Values | None = None
    uniform: Annotated[tuple[float, float], Checked(_rising)] | None = None  # a number between two ends
    # the same, evenly by its logarithm
    log_uniform: Annotated[tuple[float, float], Checked(_above_0)] | None = None
    # a whole number: the first, the last, and perhaps by how much they rise
    range: Annotated[tuple[int, ...], Checked(_in_steps)] | None = None
    # a whole number between two ends, evenly by its logarithm
    log_range: Annotated[tuple[int, int], Checked(_above_0)] | None = None
    # how many numbers a grid takes, evenly, of those between two ends
    points: Annotated[int, Within(at_least=1, at_most=MOST_CELLS)] | None = None
    # another axis: this key has its value, or that of `values` in the same place
    tied: str | None = None
    times: float | None = None  # what the value of the other axis is multiplied by
    # by axes above: the value that each must have, or an array of such; else the key is left as it is
    when: Frozen[Any] = field(default_factory=empty)

    def __post_init__(self) -> None:
        said = [way for way in WAYS if getattr(self, way) is not None]
        if self.tied is None and not said:
            raise ValueError(f"says no value; one of {', '.join(WAYS)} or tied would do")
        if self.tied is None and len(said) > 1:
            raise Wrong(said[1], f"found {' and '.join(said)}; one of them would do", is_key=True)
        if self.tied is not None and (wrong := [way for way in said if way != "values"]):
            said_so = "a tied axis has what another makes it; `times` or `values` would do"
            raise Wrong(wrong[0], said_so, is_key=True)
        if self.times is not None and (self.tied is None or self.values is not None):
            raise Wrong("times", "multiplies the value of the axis that this one is tied to", is_key=True)
        if self.points is not None and not {*said} & {*COUNTED}:
            raise Wrong("points", f"is for {either(COUNTED)}; all else is counted", is_key=True)

    def cells(self) -> tuple[Any, ...] | None:
        """The values that a grid takes, in their order; None where nothing says how many."""
        if self.values is not None:
            return self.values
        if self.range is not None:
            return self.counted()
        if self.points is None:
            return None
        if self.uniform is not None:
            return _evenly(*self.uniform, self.points)
        ends = self.log_uniform or self.log_range
        assert ends is not None
        logs = _evenly(math.log(ends[0]), math.log(ends[1]), self.points)
        found = [ends[0], *map(math.exp, logs[1:-1]), *ends[1:]][: self.points]
        if self.log_range is not None:
            return tuple(dict.fromkeys(map(round, found)))
        return tuple(float(f"{value:.6g}") for value in found)

    def counted(self) -> tuple[int, ...]:
        """The numbers of a range. Raises ValueError of more than a grid can have."""
        found = self.numbers()
        if self.count() > MOST_CELLS:
            raise ValueError(f"found {self.count():,} numbers; in a grid at most {MOST_CELLS:,} would do")
        return tuple(found)

    def count(self) -> int:
        """How many values an array has, or a range numbers."""
        if self.values is not None:
            return len(self.values)
        assert self.range is not None
        first, last, *step = self.range
        return (last - first) // (step[0] if step else 1) + 1

    def numbers(self) -> Sequence[int]:
        """Those of a range."""
        assert self.range is not None
        first, last, *step = self.range
        return range(first, last + 1, *step)

    def can_be(self, value: Any) -> bool:
        """Whether it may have a value."""
        if self.values is not None:
            return any(same(value, other) for other in self.values)
        ends = self.uniform or self.log_uniform or self.range or self.log_range
        if ends is None:
            return True
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if not ends[0] <= value <= ends[1]:
            return False
        if self.uniform is not None or self.log_uniform is not None:
            return value in (self.cells() or ())  # of very many numbers it is hardly ever this one
        step = self.range[2] if self.range is not None and len(self.range) == 3 else 1
        return (value - ends[0]) % step == 0

    def extremes(self) -> tuple[Any, ...]:
        """Values that stand for all others: each of an array or of a few numbers, both ends of many."""
        if self.values is not None:
            return self.values
        if self.range is not None and self.count() <= FEW:
            return tuple(self.numbers())
        ends = self.uniform or self.log_uniform or self.range or self.log_range
        return () if ends is None else ends[:2]

    def tied_to(self, other: Any, cells: tuple[Any, ...] | None) -> Any:
        """What the key is where the axis that it is tied to has a value, which is one of `cells`."""
        if self.values is not None:
            assert cells is not None
            return self.values[same_place(other, cells)]
        if self.times is None:
            return other
        found = other * self.times
        return int(found) if isinstance(other, int) and found.is_integer() else found

    def is_on(self, chosen: Mapping[str, Any]) -> bool:
        """Whether the key is set at all, where the axes above have these values."""
        return all(
            key in chosen and any(same(chosen[key], one) for one in _wanted(found))
            for key, found in self.when.items()
        )


def same(value: Any, other: Any) -> bool:
    """Whether two values of a recipe are the same; 1 and 1.0 are, and 1 and true are not."""
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


def same_place(value: Any, values: tuple[Any, ...]) -> int:
    """Where a value stands among values that have it."""
    return next(number for number, other in enumerate(values) if same(value, other))


def _wanted(found: Any) -> tuple[Any, ...]:
    return found if isinstance(found, tuple) else (found,)


def _evenly(low: float, high: float, count: int) -> tuple[float, ...]:
    steps = max(count - 1, 1)
    return tuple(float(f"{low + (high - low) * n / steps:.12g}") for n in range(count))
