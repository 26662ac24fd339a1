"""Where runs lie, and which of them a call of `dtrain run` carries on.

runs/<name>/<run id>/ holds recipe.toml, metrics.jsonl, samples/, wandb/ and checkpoints/, and origin.json
where it began from a checkpoint of another run. A run that some process is working on holds a lock, which
the system frees when that process ends, however it ends.
"""

import secrets
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from dtrain.checkpoint.lease import TOKEN
from dtrain.checkpoint.origin import note_of, noted
from dtrain.checkpoint.read import checkpoints_in, step_of
from dtrain.errors import CheckpointError
from dtrain.format.checkpoints import glance_at, read_recipe
from dtrain.format.files import ORIGIN, PARTIAL, RECIPE, UNSENT, sync, write_synced
from dtrain.format.locks import lock, remove_unused, try_lock
from dtrain.format.runs import checkpoint_at, ended_early

AT_FIRST = (RECIPE, ORIGIN, TOKEN)  # what a run's folder has before anything is recorded in it


@dataclass(frozen=True)
class Place:
    """A run's folder, and the checkpoint to start from if there is one."""

    folder: Path
    checkpoint: Path | None

    @property
    def id(self) -> str:
        return self.folder.name


def choose(
    runs: Path, *, name: str, recipe: str, last_step: int, fresh: bool, once: bool, resume: Path | None
) -> tuple[Place, ExitStack]:
    """Find the run to carry on, or make the folder of a new one; it is locked until the stack is closed.

    A run of the same resolved recipe that was cut off is carried on from its newest checkpoint, or from the
    one of another run that it began from, and one that has finished if something of it is still to be copied
    elsewhere; with `once` the newest one is taken that is there, though it has finished.
    Raises CheckpointError if `resume` names no checkpoint, or a run that is being worked on, as with `once`
    the newest may be, or if what a run began from is gone.
    """
    home = runs / name
    if resume is not None:
        checkpoint = checkpoint_at(resume).absolute()
        run = checkpoint.parent.parent
        is_newest = checkpoint.name == max((found.name for found in checkpoints_in(run)), default="")
        if is_newest and recipe_of(run) == recipe:
            _check_own(checkpoint, recipe)
            held = lock(run)
            return Place(_swept(run), checkpoint), held
        return _new(home, recipe, checkpoint)
    if not fresh:
        for run in sorted(home.glob("[!.]*"), reverse=True):
            if recipe_of(run) != recipe:
                continue
            if (found := try_lock(run)) is None:
                if once:  # or it would be trained twice
                    raise CheckpointError(f"{run} is being worked on by another process")
                continue
            newest = next(reversed(checkpoints_in(run)), None)
            is_cut_off = newest is None or (step_of(newest) < last_step and not ended_early(newest))
            if is_cut_off or once or (run / UNSENT).exists():
                with found:
                    if newest is not None:
                        _check_own(newest, recipe)
                    place = Place(_swept(run), noted(run) if newest is None else newest.absolute())
                    return place, found.pop_all()
            found.close()
            break
    return _new(home, recipe, None)


def recipe_of(run: Path) -> str | None:
    """The resolved recipe of a run; None where it cannot be read."""
    try:
        return read_recipe(run)
    except CheckpointError:
        return None


def _check_own(checkpoint: Path, recipe: str) -> None:
    """Raise CheckpointError if a checkpoint of a run was put there from a run of another recipe."""
    try:
        own = glance_at(checkpoint).recipe
    except CheckpointError:  # it is damaged, of which whoever opens it says more
        return
    if own != recipe:
        said = "is of another recipe than its run; move it away, and the run goes on from the one before"
        raise CheckpointError(f"{checkpoint} {said}")


def _new(home: Path, recipe: str, checkpoint: Path | None) -> tuple[Place, ExitStack]:
    """A folder of its own for a new run: made and locked under a hidden name, so that nobody takes it up.

    It is gone when it is unlocked, if nothing was recorded in it: the run was refused.
    """
    name = f"{datetime.now():%Y%m%d-%H%M%S-%f}-{secrets.token_hex(2)}"
    hidden = home / f".{name}"
    files = {RECIPE: recipe.encode()} | ({} if checkpoint is None else {ORIGIN: note_of(checkpoint)})
    try:
        hidden.mkdir(parents=True)
        held = lock(hidden)
        for file, content in files.items():
            write_synced(hidden / file, content)
        sync(hidden)
        hidden.rename(home / name)
    except OSError as error:
        shutil.rmtree(hidden, ignore_errors=True)
        raise CheckpointError(f"{home / name} cannot be made: {error}") from None
    place = Place((home / name).absolute(), checkpoint)
    held.callback(remove_unused, place.folder, AT_FIRST)
    return place, held


def _swept(run: Path) -> Path:
    """Clear what a life that was cut off had begun to write or to remove."""
    shutil.rmtree(run / PARTIAL, ignore_errors=True)
    return run.absolute()
