"""dtrain run: train a recipe."""

import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import tomli

from dtrain.cli.arguments import a_recipe, said_again
from dtrain.cli.arguments import hang_timeout as hang_timeout_option
from dtrain.cli.arguments import scale as scale_option
from dtrain.cli.ending import INTERRUPTED, STOPPED, complain
from dtrain.errors import DivergedError, DtrainError
from dtrain.events import Stopped
from dtrain.format.files import RECIPE
from dtrain.spec.words import visible

if TYPE_CHECKING:
    from dtrain.run import Run

KEYS = 4  # of a recipe that are named


@click.command()
@a_recipe
@scale_option
@click.option("--fresh", is_flag=True, help="Begin anew even if a run was cut off.")
@click.option("--once", is_flag=True, help="Do not begin anew where a run of this recipe has finished.")
@click.option(
    "--resume", type=click.Path(path_type=Path), help="Start from this run or checkpoint, or one at a URL."
)
@click.option("--accept-data", is_flag=True, help="Go on though the data is another than it was.")
@click.option(
    "--max-minutes",
    metavar="MINUTES",
    type=click.FloatRange(min=0, min_open=True),
    default=math.inf,
    help="Save and end after so long, if the run has not finished.",
)
@click.option("--verify", is_flag=True, help="Check the hashes of all tensors of the checkpoint first.")
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="The folder in which runs are kept.",
)
@hang_timeout_option
def run(
    recipe: Path,
    overrides: Sequence[str],
    set_files: Sequence[Path],
    untrusted: bool,
    trust: Sequence[str],
    scale_file: Path | None,
    fresh: bool,
    once: bool,
    resume: Path | None,
    accept_data: bool,
    max_minutes: float,
    verify: bool,
    runs: Path,
    hang_timeout: float,
) -> int:
    """Train a recipe.

    A run of the same recipe that was cut off carries on from its newest checkpoint. SIGTERM, SIGINT, SIGHUP,
    SIGUSR1 and --max-minutes end a run after its step and save it: the status is then 143 (130 for SIGINT),
    which says to start the same command again.
    """
    until = time.monotonic() + 60 * max_minutes
    from dtrain.scale.asked import read_scale
    from dtrain.scale.fit import misfits
    from dtrain.world.launcher import contradictions
    from dtrain.world.world import read_world, tie_to_launcher

    if fresh and resume is not None:
        raise DtrainError("--fresh begins anew and --resume does not; give one of them")
    if fresh and once:
        raise DtrainError("--fresh begins anew and --once does not; give one of them")

    world = read_world(os.environ)
    tie_to_launcher(world)
    from dtrain.cli.trust import trust_of
    from dtrain.recipe.fit import check_data
    from dtrain.recipe.load import from_document, read
    from dtrain.recipe.locate import located, locating

    document = read(recipe, overrides, set_files=set_files, trust=trust_of(untrusted, trust))
    if document.trust.everything:
        sys.path.append(str(recipe.parent.absolute()))  # a recipe's own modules may lie beside it
    loaded = from_document(document)  # a mistake is told before torch takes its seconds to come
    clips = {name: optimizer.clip for name, optimizer in loaded.optimizers.items()}
    scale = read_scale(os.environ, scale_file, loaded)
    against_launcher = [*contradictions(loaded.train, clips, world.size, world.asked)]
    if against_launcher := [*against_launcher, *misfits(loaded, scale.engine)]:
        raise located(document, against_launcher)
    if world.local_rank == 0:  # of a folder of a million pictures one listing a machine is enough
        check_data(loaded, document, world.size)

    from dtrain.data.identity import PARTS
    from dtrain.loop import train
    from dtrain.run import setup, watch
    from dtrain.stopping import Agreement, Signals

    with locating(document):
        made = setup(
            loaded,
            runs=runs,
            fresh=fresh,
            once=once,
            resume=resume,
            accept_data=accept_data,
            verify=verify,
            world=world,
            scale=scale,
            trust=document.trust,
            hang_timeout=hang_timeout,
        )
    with made as ready:
        if ready.engine.rank == 0 and ready.place.checkpoint is not None:
            other = "".join(f"; {PARTS[part]} has {words}" for part, words in ready.other_data.items())
            print(f"carrying on from {_short(ready.place.checkpoint)}{other}", flush=True)
        elif ready.engine.rank == 0:
            passed_over = () if fresh else _passed_over(ready.folder)
            for line in (*passed_over, *ready.engine.begun):
                print(visible(line), flush=True)
        with watch(ready) as observe, Signals(complain) as signals:
            try:
                for event in train(ready, Agreement(signals, ready.engine.world, until=until)):
                    observe(event)
            except DivergedError as error:
                again = said_again(recipe, with_every_step(overrides), set_files, untrusted, trust)
                command = to_see_again(again, runs, error.checkpoint, accept_data=accept_data)
                raise DivergedError(f"{error}\n  to see it again: {command}", error.checkpoint) from None
        if ready.engine.rank == 0 and not isinstance(event, Stopped):
            _summarise(ready, uses_wandb="wandb" in loaded.track.kinds)
    if not isinstance(event, Stopped):
        return 0
    anew = " without --fresh" if fresh else "" if resume is None else " without --resume"
    stopped = f"stopped by {event.why} at step {event.step}; saved {_short(event.path)}"
    complain(f"{stopped}; the same command{anew} carries on")
    return INTERRUPTED if event.asked == signal.SIGINT else STOPPED


def with_every_step(overrides: Sequence[str]) -> list[str]:
    """The overrides, and those that log each step, to the console alone."""
    other = {"every.log": "1", "track.kinds": '["console"]'}
    kept = [override for override in overrides if override.partition("=")[0].strip() not in other]
    return [*kept, *(f"{key}={value}" for key, value in other.items())]


def to_see_again(again: Sequence[str], runs: Path, checkpoint: Path | None, *, accept_data: bool) -> str:
    """The command that goes from a checkpoint to where a run stopped, in a run of its own, logging each step.

    Nothing else differs: not the number of steps, by which schedules go, nor when it is evaluated.
    """
    return shlex.join(
        [
            "dtrain",
            "run",
            *again,
            *(["--fresh"] if checkpoint is None else ["--resume", _short(checkpoint)]),
            *(["--accept-data"] if accept_data and checkpoint is not None else []),
            *([] if runs == Path("runs") else ["--runs", str(runs)]),
        ]
    )


def _passed_over(folder: Path) -> Iterator[str]:
    """What is said where the run before a new one was cut off, and not carried on: its recipe is another."""
    from dtrain.format.runs import run_before, standing
    from dtrain.recipe.compare import between

    if (before := run_before(folder)) is None:
        return
    try:
        known = standing(before)
    except DtrainError:  # it is not this run's business
        return
    if known.state != "cut off":
        return
    try:
        first, second = (tomli.loads((run / RECIPE).read_text(encoding="utf-8")) for run in (before, folder))
    except (OSError, ValueError, RecursionError):
        said = "its recipe.toml cannot be read; its checkpoints have it, too"
        yield f"beginning anew: {_short(before)} was cut off at step {known.step}, and {said}"
        return
    first.pop("hyperparameters", None)  # whose values stand where they are referred to
    second.pop("hyperparameters", None)
    keys = [each.key for each in between(first, second, ())]
    if keys:
        more = f" and {len(keys) - KEYS} more" if len(keys) > KEYS else ""
        differs = f"differs in {', '.join(keys[:KEYS])}{more}"
        yield f"beginning anew: {_short(before)} was cut off at step {known.step}, and {differs}"


def _summarise(run: "Run", *, uses_wandb: bool) -> None:
    """Say where everything lies, and how to look at it."""
    from dtrain.checkpoint.read import checkpoints_in, step_of
    from dtrain.format.wandb_folder import how_to_look

    folder, best = run.folder, run.best
    print(f"\nrun         {_short(folder)}")
    checkpoints = checkpoints_in(folder)
    print(f"checkpoint  {_short(checkpoints[-1])}")
    if best.at is not None:
        step, value = best.at
        path = next(path for path in checkpoints if step_of(path) == step)
        print(f"best        {_short(path)}  {best.metric} {value:.6g}")
    if run.mirror is not None:
        print(f"copy        {run.mirror.where}")
    for what, files in (("pictures", "*.png"), ("texts", "*.txt")):
        if found := sorted((folder / "samples").glob(files)):
            print(f"{what:<12}{_short(found[-1])}")
    if uses_wandb:
        for command in how_to_look(Path(_short(folder))):
            print(f"look        {command}")
    sys.stdout.flush()


def _short(path: Path) -> str:
    """A path as a user would type it here."""
    here = os.path.relpath(path)
    return str(path) if here.startswith("..") else here
