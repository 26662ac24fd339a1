"""`metrics.jsonl` of a run, read: one JSON object a line, `{"step": 20, "generator/loss": 0.69}`."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dtrain.errors import DtrainError
from dtrain.format.lines import whole_lines

METRICS = "metrics.jsonl"
NOT_FINITE = ("NaN", "Infinity", "-Infinity")
EVALUATED = "evaluate/"  # what the names of an evaluation's metrics begin with
UNMEASURED = ("examples_per_second",)  # of the machine, not of the recipe
BROKEN = (ValueError, AttributeError, KeyError, TypeError, RecursionError)  # what a broken line leads to
BLOCK = 1 << 16  # bytes read at once, from the end


@dataclass(frozen=True)
class Line:
    """A line of the file. A text in it is the path of a sample, or a number that is not finite."""

    step: int
    values: dict[str, float | str]

    @property
    def told(self) -> dict[str, float | str]:
        """The values; those that are text are paths of samples."""
        return {name: float(value) if value in NOT_FINITE else value for name, value in self.values.items()}

    @property
    def numbers(self) -> dict[str, float]:
        """What was measured."""
        return {name: float(value) for name, value in self.told.items() if isinstance(value, int | float)}


def read_metrics(path: Path) -> Iterator[tuple[int, dict[str, float | str]]]:
    """Yield each line's step and values; values that are text are paths of samples.

    A last line without its end was torn by a crash and is left out. Raises `DtrainError` for any
    other line that is not an object with a step.
    """
    for line in lines_of(path):
        yield line.step, line.told


def lines_of(path: Path) -> Iterator[Line]:
    """Every line but a torn last one. Raises DtrainError for one that is not an object with a step."""
    for _, values in whole_lines(path):
        yield Line(values.pop("step"), values)


def last_values(path: Path, step: int | None) -> dict[str, tuple[int, float]]:
    """The last value of each metric up to a step, with the step that it was measured at."""
    found: dict[str, tuple[int, float]] = {}
    for line in lines_of(path) if path.is_file() else ():
        if step is None or line.step <= step:
            found |= {name: (line.step, value) for name, value in line.numbers.items()}
    return {name: value for name, value in found.items() if name not in UNMEASURED}


@dataclass(frozen=True)
class Latest:
    """What a run told last: of a step, and of an evaluation."""

    step: int = 0
    logged: Line | None = None
    evaluated: Line | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers of both."""
        lines = (line for line in (self.logged, self.evaluated) if line is not None)
        return {
            name: value for line in lines for name, value in line.numbers.items() if name not in UNMEASURED
        }


def latest_in(path: Path) -> Latest:
    """The same of a file of any length, read from its end. Raises DtrainError if it cannot be read."""
    step, logged, evaluated = 0, None, None
    mark = f'"{EVALUATED}'.encode()
    try:
        for raw in _from_the_end(path):
            if (evaluated if mark in raw else logged) is not None:
                continue
            line = _line(raw)
            step = max(step, line.step)
            if mark in raw:
                evaluated = line
            elif line.numbers:
                logged = line
            if logged is not None and evaluated is not None:
                break
    except FileNotFoundError:  # nobody watches that run
        return Latest()
    except (OSError, *BROKEN) as error:
        raise DtrainError(f"{path} cannot be read: {error}") from None
    return Latest(step, logged, evaluated)


def _from_the_end(path: Path) -> Iterator[bytes]:
    """The whole lines of a file, the last one first."""
    with path.open("rb") as file:
        place, rest = file.seek(0, os.SEEK_END), b""
        is_end = True
        while place:
            start = max(place - BLOCK, 0)
            file.seek(start)
            first, *lines = (file.read(place - start) + rest).split(b"\n")
            if is_end and lines:
                lines.pop()  # torn, or empty
                is_end = False
            yield from reversed(lines)
            place, rest = start, first
        if not is_end:
            yield rest


def line_of(raw: bytes) -> Line:
    """A line as it stands in the file. Raises DtrainError if it is none."""
    try:
        return _line(raw)
    except BROKEN as error:
        raise DtrainError(f"found no line of metrics: {error}") from None


def _line(raw: bytes) -> Line:
    values = json.loads(raw)
    step = values.pop("step")
    if type(step) is not int:
        raise ValueError(f"found the step {step!r}")
    return Line(step, values)
