"""A sweep made ready: the recipe as it was written, what is tried of it, and where all that is kept."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dtrain.errors import DtrainError, RecipeError
from dtrain.format.sweeps import SWEEPS
from dtrain.recipe.cells import check_trials, placed_in, trial
from dtrain.recipe.compose import places
from dtrain.recipe.document import Document, copied
from dtrain.recipe.fit import check_data
from dtrain.recipe.load import from_document
from dtrain.recipe.locate import located
from dtrain.recipe.metrics import compared_by
from dtrain.recipe.plan import pace_of
from dtrain.recipe.texts import argument
from dtrain.recipe.values import Recipe
from dtrain.recipe.write import encode, to_toml
from dtrain.scale.asked import read_scale
from dtrain.scale.fit import misfits
from dtrain.spec.sweep import Hyperband, Median, Pruner, Sweep
from dtrain.spec.words import show
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
    steps: int | None  # of a trial, as far as can be told before it is trained
    examples: int | None  # of the data, where that is known and no axis changes it

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
        told = json.dumps([to_toml(self.base), table, self.metric, self.mode], default=str)
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def recipe(self, settings: Mapping[str, Any], after: int = 0) -> Recipe:
        """The recipe of a trial. Raises DtrainError if it is none."""
        return trial(self.written, self.sweep, settings, after=after)


def open_setup(document: Document, launch: Launch, devices: Sequence[Sequence[str]]) -> Setup:
    """Read and check a recipe with its sweep, and how its trials are to be started.

    Raises RecipeErrors for every mistake that can be found, DtrainError for files of the launch that will
    not do, or cannot be read.
    """
    resolved = copied(document)
    base = from_document(resolved)
    if base.sweep is None:
        said = "required, but missing; a table of axes would do, as docs/sweeps.md shows"
        raise located(document, [RecipeError("sweep", said)])
    scale = read_scale({}, launch.scale, base)
    if launch.config is None and (errors := list(misfits(base, scale.engine))):
        raise located(resolved, errors)
    processes = launch.processes
    data = check_data(base, resolved, processes)
    count = None if data is None else data.count
    check_trials(document, base.sweep, processes=processes)
    metric, mode = compared_by(base)
    pace = pace_of(base.train, base.system, count)
    steps = None if pace is None else pace.total
    if error := _idle_pruner(base.sweep.prune, steps):
        raise located(resolved, [error])
    is_other = any(placed_in(key)[0] in ("data", "hyperparameters") for key in base.sweep.axes)
    examples = None if is_other else count
    return Setup(document, base, base.sweep, metric, mode, launch, devices, steps, examples)


def _idle_pruner(prune: Pruner | None, steps: int | None) -> RecipeError | None:
    """What is wrong with who ends trials early, if a trial has so many steps."""
    if steps is None and isinstance(prune, Hyperband):
        said = "Hyperband must know how long a trial is, and the data does not tell; train.steps would do"
        return RecipeError("sweep.prune", said)
    key, first = ("warmup", prune.warmup) if isinstance(prune, Median) else ("min_steps", 0)
    if isinstance(prune, Hyperband):
        first = prune.min_steps
    if steps is not None and first >= steps:
        return RecipeError(
            f"sweep.prune.{key}", f"found {first}, but a trial has {steps} steps; less would do"
        )
    return None


def check_overrides(setup: Setup, overrides: Sequence[str]) -> None:
    """Raise DtrainError if an argument sets what an axis sets anyway."""
    axes = {place: key for key in setup.sweep.axes for place in places(setup.written.table, placed_in(key))}
    for number, content in enumerate(overrides, 1):
        _, place, _ = argument(number, content)
        for each in places(setup.written.table, place):
            if each in axes:
                said = f"argument {number}: {content} is set by the axis {show(axes[each])} anyway"
                raise DtrainError(f"{said}; leave one of them out")


def grouped(devices: Sequence[str], parallel: int) -> list[list[str]]:
    """Devices for each of so many trials at a time. Raises DtrainError unless each gets as many."""
    if not devices:
        raise DtrainError("--devices names none; 0,1 would do")
    if len(devices) % parallel:
        said = f"{len(devices)} devices cannot be shared by {parallel} trials at a time"
        raise DtrainError(f"{said}; --parallel {_divisor(len(devices), parallel)} would do")
    each = len(devices) // parallel
    return [list(devices[slot * each : (slot + 1) * each]) for slot in range(parallel)]


def check_devices(devices: Sequence[str]) -> None:
    """Raise DtrainError for a GPU by number that this machine has not, or that is hidden here."""
    if not devices:
        return
    import torch

    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = [*map(str, range(torch.cuda.device_count()))] if shown is None else shown.split(",")
    if missing := [name for name in devices if name.isdecimal() and name not in there]:
        said = f"one of {', '.join(there)} would do" if any(there) else "leave it out"
        raise DtrainError(f"--devices {missing[0]}: there is no such GPU here; {said}")


def _divisor(count: int, near: int) -> int:
    return max(number for number in range(1, min(count, near) + 1) if count % number == 0)
