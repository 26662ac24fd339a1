"""dtrain run: train a recipe."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from dtrain.cli.arguments import Overrides, RecipePath
from dtrain.errors import DtrainError


def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew even if a run was cut off.")] = False,
    resume: Annotated[Path | None, typer.Option(help="Start from this run or checkpoint.")] = None,
    runs: Annotated[Path, typer.Option(help="The folder in which runs are kept.")] = Path("runs"),
) -> None:
    """Train a recipe. A run of it that was cut off carries on from its newest checkpoint."""
    from dtrain.engines.world import read_world, tie_to_launcher

    if fresh and resume is not None:
        raise DtrainError("--fresh begins anew and --resume does not; give one of them")

    world = read_world(os.environ)
    tie_to_launcher(world)

    from dtrain.recipe.load import load

    sys.path.append(str(recipe.parent.absolute()))  # a recipe's own modules may lie beside it

    loaded = load(recipe, overrides or ())  # a mistake is told before torch takes its seconds to come

    from dtrain.loop import train
    from dtrain.run import setup, watch

    precision = world.precision_of_launcher
    if precision not in ("no", loaded.train.precision) and world.rank == 0:
        print(
            f"dtrain: the launcher's mixed_precision ({precision}) is not used; "
            f"train.precision decides: {loaded.train.precision}",
            file=sys.stderr,
        )
    with setup(loaded, runs=runs, fresh=fresh, resume=resume, world=world) as ready:
        if ready.engine.rank == 0 and ready.place.checkpoint is not None:
            print(f"carrying on from {_short(ready.place.checkpoint)}", flush=True)
        with watch(ready) as observe:
            for event in train(ready):
                observe(event)
        if ready.engine.rank == 0:
            _summarise(ready.folder, uses_wandb="wandb" in loaded.track.kinds)


def _summarise(folder: Path, *, uses_wandb: bool) -> None:
    """Say where everything lies, and how to look at it."""
    from dtrain.checkpoint.read import checkpoints_in
    from dtrain.track.weights_and_biases import how_to_look

    print(f"\nrun         {_short(folder)}")
    print(f"checkpoint  {_short(checkpoints_in(folder)[-1])}")
    grids = sorted((folder / "samples").glob("*.png")) if (folder / "samples").is_dir() else []
    if grids:
        print(f"pictures    {_short(grids[-1])}")
    if uses_wandb:
        for command in how_to_look(Path(_short(folder))):
            print(f"look        {command}")
    sys.stdout.flush()


def _short(path: Path) -> str:
    """A path as a user would type it here."""
    here = os.path.relpath(path)
    return str(path) if here.startswith("..") else here
