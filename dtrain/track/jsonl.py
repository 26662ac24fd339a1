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
from pathlib import Path
from typing import Any

from dtrain.errors import DtrainError
from dtrain.events import Evaluated, Event, Observer, Sampled, Stepped
from dtrain.format.lines import drop_later
from dtrain.format.metrics import METRICS
from dtrain.track.base import RunInfo


@contextmanager
def open_jsonl(run: RunInfo, step: int) -> Iterator[Observer]:
    """Drop what is later than `step` from `metrics.jsonl`, then append each line as soon as it is known."""
    path = run.folder / METRICS
    try:
        drop_later(path, step)
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


def _as_json(value: float) -> float | str:
    if math.isfinite(value):
        return float(value)  # also of a NumPy or torch scalar
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _cannot_write(path: Path, error: OSError) -> DtrainError:
    return DtrainError(f"{path}: cannot be written ({error.strerror or error}); mend that and resume")
