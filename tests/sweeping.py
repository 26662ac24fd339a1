"""A small recipe with a sweep, for the tests of sweeps."""

from pathlib import Path
from typing import Any

from conftest import CLASSIFIER, written

from dtrain.recipe.load import read
from dtrain.sweep.process import Launch
from dtrain.sweep.setup import Setup, open_setup

GRID = 'sampler = "grid"\nmetric = "evaluate/accuracy"\n'
LINES = CLASSIFIER.count("\n")  # of the recipe above the sweep
FIRST_AXIS = LINES + 5  # its line


def swept(folder: Path, axes: str, options: str = GRID) -> Path:
    return written(folder, "swept.toml", f"{CLASSIFIER}[sweep]\n{options}[sweep.axes]\n{axes}")


def ready(folder: Path, axes: str, options: str = GRID) -> Setup:
    return open_setup(read(swept(folder, axes, options)), Launch(folder / "runs"), [])


def tried(setup: Setup) -> list[dict[str, Any]]:
    return setup.sweep.grid()
