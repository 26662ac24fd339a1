"""A run made ready: models, optimizers, data, engine, and the place where it is kept."""

import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli

from dtrain.checkpoint.folders import Place, choose, lock
from dtrain.checkpoint.read import all_tensors, open_checkpoint
from dtrain.data.loader import Loader
from dtrain.data.opening import open_examples
from dtrain.data.order import Order, Sweep
from dtrain.data.source import Examples
from dtrain.engines.base import Engine
from dtrain.engines.world import World, read_world
from dtrain.errors import CheckpointError, DataError, DtrainError, LaunchError, RecipeError
from dtrain.recipe.fit import check_fields, check_shares
from dtrain.recipe.values import Recipe
from dtrain.recipe.write import encode, to_toml
from dtrain.systems.base import System, steps_for, updates_before
from dtrain.track import RunInfo, open_trackers

PATIENCE = timedelta(minutes=30)  # of a rank for a late one; evaluating and saving included
OF_OTHER_RANKS = {kind.__name__: kind for kind in (CheckpointError, DataError, LaunchError)}


@dataclass
class Run:
    """What the loop needs; a `with` resource, or closed by `close`.

    `step` counts the steps done, and `best` is the step and value of the best evaluation saved so far.
    """

    recipe: Recipe
    system: System
    engine: Engine
    loader: Loader
    order: Order
    evaluation: Loader | None  # None where the data has no part for it
    place: Place
    total: int  # steps
    environment: Mapping[str, Any]  # versions, device and world, for the manifest
    step: int = 0
    best: tuple[int, float] | None = None
    resources: ExitStack = field(default_factory=ExitStack)

    @property
    def folder(self) -> Path:
        return self.place.folder

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds besides tensors."""
        updates = updates_before(self.system.phases(), self.step)
        return {
            "step": self.step,
            "updates": updates,
            "best": self.best,
            "run": self.place.id,
            **self.engine.scalars(),
        }

    def close(self) -> None:
        """Free the devices, leave the other processes in good order, unlock the run's folder."""
        self.resources.close()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *problem: Any) -> None:
        self.resources.__exit__(*problem)


def setup(
    recipe: Recipe,
    *,
    runs: str | Path = "runs",
    fresh: bool = False,
    resume: str | Path | None = None,
    world: World | None = None,
) -> Run:
    """Make a run ready: carry on the newest one of this recipe that was cut off, or begin a new one.

    `fresh` begins anew; `resume` names a run or a checkpoint to start from. Raises DtrainError for
    a world other than the one asked for, data or a checkpoint that cannot be read, or that does not
    fit the recipe.
    """
    world = world or read_world(os.environ)
    with ExitStack() as stack:
        engine = stack.enter_context(_open_engine(recipe, world))
        examples, evaluation = agreed(engine, lambda: _open_data(recipe))
        system = recipe.system
        assert isinstance(system, System)
        order = Order(len(examples), recipe.train.batch_size, recipe.train.micro, recipe.seed)
        check_shares(recipe, len(examples), engine.world)
        updates = (recipe.train.epochs or 0) * order.updates_per_epoch
        run = Run(
            recipe=recipe,
            system=system,
            engine=engine,
            loader=stack.enter_context(Loader(examples, order, engine.rank, engine.world)),
            order=order,
            evaluation=None
            if evaluation is None
            else stack.enter_context(_sweep(evaluation, recipe, engine)),
            place=Place(Path(), None),
            total=recipe.train.steps or steps_for(system.phases(), updates),
            environment=_environment(engine),
        )
        run.place = _choose(run, Path(runs), fresh, None if resume is None else Path(resume))
        if engine.rank == 0:
            stack.enter_context(lock(run.folder))
        if run.place.checkpoint is not None:
            agreed(engine, lambda: _restore(run, run.place.checkpoint))
        run.resources = stack.pop_all()
    return run


@contextmanager
def watch(run: Run) -> Iterator[Any]:
    """Open the recipe's trackers and yield the one observer that tells them all; rank 0 alone has any."""
    track = run.recipe.track
    info = RunInfo(run.folder, run.place.id, run.recipe.name, track.project, encode(run.recipe))
    with open_trackers(track.kinds if run.engine.rank == 0 else (), info, run.step) as observe:
        yield observe


def agreed(engine: Engine, action: Any) -> Any:
    """Do something on every rank; if it fails on any, raise on all: its own error, or the first rank's."""
    result, problem = None, None
    try:
        result = action()
    except DtrainError as error:
        problem = error
    said = engine.gather(None if problem is None else [type(problem).__name__, str(problem)])
    if problem is not None:
        raise problem
    for kind, text in filter(None, said):
        raise RecipeError("", text) if kind == "RecipeError" else OF_OTHER_RANKS.get(kind, DtrainError)(text)
    return result


@contextmanager
def _open_engine(recipe: Recipe, world: World) -> Iterator[Engine]:
    # Only now, as torch and Accelerate take seconds to import.
    from dtrain.engines.accelerated import AcceleratedEngine
    from dtrain.engines.processes import join

    with join(world, PATIENCE) as accelerator:
        yield AcceleratedEngine(
            accelerator,
            models=recipe.models,
            optimizers=recipe.optimizers,
            averages={name: average.decay for name, average in recipe.averages.items()},
            precision=recipe.train.precision,
            seed=recipe.seed,
        )


def _open_data(recipe: Recipe) -> tuple[Examples, Examples | None]:
    examples = open_examples(recipe.data, "train", recipe.seed)
    check_fields(recipe, examples)
    source = recipe.evaluate.data or recipe.data
    try:
        return examples, open_examples(source, "evaluate", recipe.seed)
    except (DataError, RecipeError):
        if recipe.every.evaluate or recipe.evaluate.data is not None or recipe.checkpoint.best is not None:
            raise
        return examples, None


def _sweep(examples: Examples, recipe: Recipe, engine: Engine) -> Loader:
    return Loader(examples, Sweep(len(examples), recipe.train.micro), engine.rank, engine.world)


def _choose(run: Run, runs: Path, fresh: bool, resume: Path | None) -> Place:
    def choice() -> list[str | None] | None:
        if run.engine.rank != 0:
            return None
        text = to_toml(run.recipe)
        place = choose(
            runs, name=run.recipe.name, recipe=text, last_step=run.total, fresh=fresh, resume=resume
        )
        return [str(path) if path else None for path in (place.folder, place.checkpoint)]

    folder, checkpoint = run.engine.share(agreed(run.engine, choice))
    return Place(Path(folder), checkpoint and Path(checkpoint))


def _restore(run: Run, path: Path) -> None:
    checkpoint = open_checkpoint(path)
    try:
        _check_optimizers(run.recipe, tomli.loads(checkpoint.recipe)["optimizers"])
        run.engine.restore(all_tensors(checkpoint), checkpoint.state)
        run.step = checkpoint.step
        run.best = tuple(checkpoint.state["best"]) if checkpoint.state["best"] else None
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not hold what this dtrain expects: {error!r}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _check_optimizers(recipe: Recipe, saved: Mapping[str, Any]) -> None:
    """Raise CheckpointError where another kind of optimizer left its state; shapes may agree even so."""
    for name, table in encode(recipe.optimizers).items():
        kind = saved[name]["kind"] if name in saved else table["kind"]
        if kind != table["kind"]:
            raise CheckpointError(
                f"optimizers.{name} was {kind} when it was saved and is {table['kind']} now"
            )


def _environment(engine: Engine) -> dict[str, Any]:
    import torch

    packages = ("dtrain", "torch", "numpy", "accelerate", "safetensors")
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or "cpu",
        "engine": type(engine).__name__,
        "world": engine.world,
        "threads": torch.get_num_threads(),
        "git": _git_commit(),
    }


def _git_commit() -> str | None:
    """The commit of the working folder, and whether it was changed since; None outside a repository."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
