"""`metrics.jsonl` in the run folder: one JSON object a line, `{"step": 20, "generator/loss": 0.69}`.

JSON has no numbers that are not finite: they are written as the strings "NaN", "Infinity" and
"-Infinity", which Python's `float` reads back. Any other string is the path of a grid of pictures or of a
file of texts, relative to the run folder. An evaluation and a set of samples are lines of their own.

A line that cannot be written is a `DtrainError` and ends the run: this file is the record of the
run, from which other trackers fill their gaps, and a full disk stops the next checkpoint anyway.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.errors import DtrainError
from dtrain.events import Evaluated, Event, Observer, Sampled, Stepped
from dtrain.track.base import RunInfo

NAME = "metrics.jsonl"
NOT_FINITE = ("NaN", "Infinity", "-Infinity")


@contextmanager
def open_jsonl(run: RunInfo, step: int) -> Iterator[Observer]:
    """Drop what is later than `step` from `metrics.jsonl`, then append each line as soon as it is known."""
    path = run.folder / NAME
    try:
        _drop_later(path, step)
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise _cannot_write(path, error) from error

    def observe(event: Event) -> None:
        if isinstance(event, Stepped | Evaluated) and event.metrics:
            values: Mapping[str, Any] = {name: _as_json(value) for name, value in event.metrics.items()}
        elif isinstance(event, Sampled):
            values = {
                name: Path(os.path.relpath(path, run.folder)).as_posix()
                for name, path in {**event.pictures, **event.texts}.items()
            }
        else:
            return
        try:
            file.write(json.dumps({"step": event.step, **values}, allow_nan=False) + "\n")
            file.flush()
        except OSError as error:
            raise _cannot_write(path, error) from error

    try:
        yield observe
    finally:
        try:
            file.close()
        except OSError as error:  # what a failed write left in the buffer is tried once more here
            raise _cannot_write(path, error) from error


def read_metrics(path: Path) -> Iterator[tuple[int, dict[str, float | str]]]:
    """Yield each line's step and values; values that are text are paths of samples.

    A last line without its end was torn by a crash and is left out. Raises `DtrainError` for any
    other line that is not an object with a step.
    """
    for line in _whole_lines(path):
        values: dict[str, float | str] = dict(line.values)
        for name, value in values.items():
            if value in NOT_FINITE:
                values[name] = float(value)
        yield line.step, values


@dataclass(frozen=True)
class _Line:
    raw: bytes
    step: int
    values: dict[str, float | str]


def _whole_lines(path: Path) -> Iterator[_Line]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.endswith(b"\n"):
                return
            try:
                values = json.loads(raw)
                step = values.pop("step")
            except (ValueError, AttributeError, KeyError, TypeError) as error:
                message = f"{path}:{number}: not a JSON object with a step; mend or delete the line"
                raise DtrainError(message) from error
            yield _Line(raw, step, values)


def _drop_later(path: Path, step: int) -> None:
    """Keep the whole lines up to `step`: the run will write the later ones again, in the same words."""
    if not path.exists():
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.writelines(line.raw for line in _whole_lines(path) if line.step <= step)
            file.flush()
            os.fsync(file.fileno())
        if temporary.stat().st_size != path.stat().st_size:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _as_json(value: float) -> float | str:
    if math.isfinite(value):
        return float(value)  # also of a NumPy or torch scalar
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _cannot_write(path: Path, error: OSError) -> DtrainError:
    return DtrainError(f"{path}: cannot be written ({error.strerror or error}); mend that and resume")
