"""What a run left behind, read into one value; torch is not needed for it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from dtrain.errors import CheckpointError
from dtrain.format.checkpoints import checkpoints_in, step_of
from dtrain.format.files import RECIPE
from dtrain.format.metrics import METRICS, Line, lines_of
from dtrain.format.runs import State, local, run_at, run_name, standing
from dtrain.recipe.load import from_document, read
from dtrain.recipe.values import Recipe
from dtrain.spec.trust import Trust
from dtrain.spec.words import nearest

Rows = tuple[tuple[int, Mapping[str, float]], ...]


@dataclass(frozen=True)
class RunRecord:
    """A run as it lies on disk. `state` is one of those of `dtrain runs`: "finished", "cut off" and so on.

    `metrics` are the lines that have numbers, in the order in which they were written: a step, and values by
    name. `samples` are the files that were drawn at a step, by name.
    """

    path: Path
    name: str
    id: str
    state: State
    step: int  # of the newest checkpoint; while it runs, the last that was told
    total: int | None  # None where no checkpoint says it yet
    recipe: Recipe
    metrics: Rows
    samples: Mapping[int, Mapping[str, Path]]
    checkpoints: Mapping[int, Path]

    def metric(self, name: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """The steps at which a metric was told, and its values. Raises CheckpointError if there are none."""
        found = [(step, values[name]) for step, values in self.metrics if name in values]
        if not found:
            near = nearest(name, dict.fromkeys(key for _, values in self.metrics for key in values))
            hint = "" if near is None else f'; did you mean "{near}"?'
            raise CheckpointError(f'{self.path} has no metric "{name}"{hint}')
        steps, values = zip(*found, strict=True)
        return steps, values


def load_run(path: str | Path) -> RunRecord:
    """Read a run, or the newest one of runs/NAME: how it stands, its recipe, metrics, samples, checkpoints.

    Of one at a URL a copy is read, which has no samples, and the newest checkpoint and the best alone.
    Nothing that the recipe names is imported, and nothing is changed. Raises CheckpointError if there is no
    run, RecipeError or DtrainError where its recipe or its metrics cannot be read.
    """
    run = run_at(local(path, best=True))
    known = standing(run)
    lines = list(lines_of(run / METRICS)) if (run / METRICS).is_file() else []
    samples: dict[int, dict[str, Path]] = {}
    for line in lines:
        if found := dict(_samples(line, run)):
            samples.setdefault(line.step, {}).update(found)
    return RunRecord(
        path=run,
        name=run_name(run),
        id=run.absolute().name,
        state=known.state,
        step=known.step,
        total=known.total,
        recipe=from_document(read(run / RECIPE, trust=Trust()), imports=False, vets=False),
        metrics=tuple((line.step, MappingProxyType(line.numbers)) for line in lines if line.numbers),
        samples=MappingProxyType({step: MappingProxyType(found) for step, found in samples.items()}),
        checkpoints=MappingProxyType({step_of(found): found for found in checkpoints_in(run)}),
    )


def _samples(line: Line, run: Path) -> Iterator[tuple[str, Path]]:
    """The files of a line that are still there, and in the run."""
    for name, value in line.told.items():
        path = run / str(value)
        if isinstance(value, str) and path.is_file() and path.resolve().is_relative_to(run.resolve()):
            yield name, path
