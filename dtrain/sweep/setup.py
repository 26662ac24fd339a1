"""A sweep made ready: the recipe as it was written, what is tried of it, and where all that is kept."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dtrain.errors import DtrainError, RecipeError
from dtrain.format.sweeps import SWEEPS
from dtrain.recipe.cells import check_trials, trial
from dtrain.recipe.document import Document, copied
from dtrain.recipe.load import from_document
from dtrain.recipe.locate import located
from dtrain.recipe.metrics import compared_by
from dtrain.recipe.plan import pace_of
from dtrain.recipe.values import Recipe
from dtrain.recipe.write import encode, to_toml
from dtrain.spec.sweep import Sweep
from dtrain.sweep.process import Launch

UNCOUNTED = ("name", "trials", "minutes")  # of the table: what changes no trial, so that a sweep can go on


@dataclass(frozen=True)
class Setup:
    """What a sweep is, and how its trials are started."""

    written: Document
    base: Recipe  # as it stands, without what is tried
    sweep: Sweep
    metric: str
    mode: Literal["max", "min"]
    launch: Launch
    devices: Sequence[Sequence[str]]  # of each slot; empty where all see all

    @property
    def name(self) -> str:
        return self.sweep.name or self.base.name

    @property
    def folder(self) -> Path:
        return self.launch.runs / SWEEPS / self.name

    @property
    def holds(self) -> Path:
        """Locks of recipes that are being trained, for all sweeps of a folder of runs."""
        return self.launch.runs / SWEEPS / ".recipes"

    @property
    def identity(self) -> str:
        """What tells this sweep from others of its name: the recipe, the axes, who chooses, by what."""
        table = {key: value for key, value in encode(self.sweep).items() if key not in UNCOUNTED}
        told = json.dumps([to_toml(self.base), table, self.metric, self.mode], sort_keys=True, default=str)
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    @property
    def steps(self) -> int:
        """How long a trial is, as far as the recipe tells without its data."""
        pace = pace_of(self.base.train, self.base.system, None)
        return 1_000_000 if pace is None else pace.total

    def recipe(self, settings: Mapping[str, Any], after: int = 0) -> Recipe:
        """The recipe of a trial. Raises DtrainError if it is none."""
        return trial(self.written, self.sweep, settings, after=after)


def open_setup(document: Document, launch: Launch, devices: Sequence[Sequence[str]]) -> Setup:
    """Read and check a recipe with its sweep. Raises RecipeErrors for every mistake that can be found."""
    base = from_document(copied(document))
    if base.sweep is None:
        said = "required, but missing; a table of axes would do, as docs/sweeps.md shows"
        raise located(document, [RecipeError("sweep", said)])
    sweep = replace(base.sweep, name=base.sweep.name)
    check_trials(document, sweep)
    metric, mode = compared_by(base)
    return Setup(document, base, sweep, metric, mode, launch, devices)


def grouped(devices: Sequence[str], parallel: int) -> list[list[str]]:
    """Devices for each of so many trials at a time. Raises DtrainError unless each gets as many."""
    if len(devices) % parallel:
        said = f"{len(devices)} devices cannot be shared by {parallel} trials at a time"
        raise DtrainError(f"{said}; --parallel {_divisor(len(devices), parallel)} would do")
    each = len(devices) // parallel
    return [list(devices[slot * each : (slot + 1) * each]) for slot in range(parallel)]


def _divisor(count: int, near: int) -> int:
    return max(number for number in range(1, min(count, near) + 1) if count % number == 0)
