"""Shapes of what expressions compute, before there are arrays: sizes may grow with the examples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Sort = Literal["fractions", "whole numbers", "truth values"]
MOST_VALUES = 10**12  # of one example; no machine holds more


class Misfit(ValueError):
    """Arrays that an operation cannot take, in words."""


@dataclass(frozen=True)
class Examples:
    """A size that is so many times the number of examples in a micro-batch."""

    times: int = 1

    def __str__(self) -> str:
        return "N" if self.times == 1 else f"{self.times}N"


Size = int | Examples
Shape = tuple[Size, ...]


@dataclass(frozen=True)
class Shaped:
    """An array to be: its shape with the axis of the examples, and what it holds; None where unknown."""

    shape: Shape | None = None
    sort: Sort | None = None

    def __str__(self) -> str:
        return shape_text(self.shape)


SCALAR = Shaped((), "fractions")


def shape_text(shape: Shape | None) -> str:
    """(N, 16)."""
    if shape is None:
        return "(unknown)"
    return f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"


def together(x: Shaped | float, y: Shaped | float, sort: Sort | None = None) -> Shaped:
    """What x and y make element by element. Raises Misfit where their shapes do not go together.

    An axis of size 1, or one that is missing in front, is repeated; never so that examples meet examples:
    (N,) and (N, 1) would make (N, N), which nobody means.
    """
    if not isinstance(x, Shaped) or not isinstance(y, Shaped):
        one = x if isinstance(x, Shaped) else y
        assert isinstance(one, Shaped)
        return Shaped(one.shape, sort or _joint_sort(x, y))
    if x.shape is None or y.shape is None:
        return Shaped(None, sort or _joint_sort(x, y))
    rank = max(len(x.shape), len(y.shape))
    left, right = (_aligned(each.shape, rank) for each in (x, y))
    sizes = []
    for a, b in zip(left, right, strict=True):
        if a != b and 1 not in (a, b):
            raise Misfit(f"{x} and {y} do not go together")
        sizes.append(b if a == 1 else a)
    grown = [axis for axis, size in enumerate(sizes) if isinstance(size, Examples)]
    own = [[axis for axis, size in enumerate(side) if isinstance(size, Examples)] for side in (left, right)]
    if len(grown) > max(map(len, own)):
        raise Misfit(f"{x} and {y} would make {shape_text(tuple(sizes))}, every example with every other")
    return Shaped(tuple(sizes), sort or _joint_sort(x, y))


def _aligned(shape: Shape | None, rank: int) -> Shape:
    assert shape is not None
    return (1,) * (rank - len(shape)) + shape


def _joint_sort(x: Any, y: Any) -> Sort | None:
    sorts = {sort_of(x), sort_of(y)}
    if "fractions" in sorts:
        return "fractions"
    return None if None in sorts else "whole numbers"


def sort_of(x: Shaped | float) -> Sort | None:
    """What a value holds, an array or a number."""
    if isinstance(x, Shaped):
        return x.sort
    return "fractions" if isinstance(x, float) else "whole numbers"


def axis_of(x: Shaped, axis: int) -> int:
    """An axis counted from 0. Raises Misfit where there is none; x must be known."""
    assert x.shape is not None
    rank = len(x.shape)
    if not -rank <= axis < rank:
        raise Misfit(f"{x} has no axis {axis}")
    return axis % rank


def without(x: Shaped, axes: int | Sequence[int] | None) -> Shape | None:
    """The shape of x less some axes; of all of them for None."""
    if axes is None:
        return ()
    if x.shape is None:
        return None
    gone = {axis_of(x, axis) for axis in ([axes] if isinstance(axes, int) else axes)}
    return tuple(size for axis, size in enumerate(x.shape) if axis not in gone)


def volume(shape: Shape) -> tuple[int, int]:
    """How many values there are: how often the examples are a factor, and the rest of the product."""
    grown = [size.times for size in shape if isinstance(size, Examples)]
    return len(grown), math.prod(grown) * math.prod(size for size in shape if isinstance(size, int))


def bounded(shape: Shape) -> Shape:
    """A shape that a machine can hold. Raises Misfit for any other."""
    if any(isinstance(size, int) and size < 1 for size in shape):
        raise Misfit(f"{shape_text(shape)} has a size below 1")
    if volume(shape)[1] > MOST_VALUES:
        raise Misfit(f"{shape_text(shape)} is more than any machine holds")
    return shape
