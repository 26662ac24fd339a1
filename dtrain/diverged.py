"""What is said of a run whose numbers are no longer finite: where, of what, and what was saved before."""

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from dtrain.checkpoint.read import checkpoints_in
from dtrain.engines.base import Fault, Measured
from dtrain.errors import CheckpointError, DivergedError
from dtrain.run import Run
from dtrain.systems.base import Phase, distinct, steps_for, updates_before

MOST_SKIPPED = 100  # updates in a row, after which nothing is to be hoped for
MOST_SHOWN = 4  # parameters


class Turn(NamedTuple):
    """Which update of a run one is."""

    step: int  # counted from 1
    phase: Phase
    label: str  # of the phase, told apart from others of that name
    repeat: int  # counted from 1, of `phase.repeat`


def turn_of(phases: Sequence[Phase], update: int) -> Turn:
    """The step and phase that make the update with this number."""
    step = steps_for(phases, update + 1)
    left = update - updates_before(phases, step - 1)
    for label, phase in zip(distinct(phase.label for phase in phases), phases, strict=True):
        if (step - 1) % phase.every:
            continue
        if left < phase.repeat:
            return Turn(step, phase, label, left + 1)
        left -= phase.repeat
    raise AssertionError(f"no phase makes update {update}")


def check(run: Run, *, weights: bool = False) -> None:
    """Raise DivergedError where an update showed numbers that are not finite; with `weights`, those too.

    So that no checkpoint is written of what one could not go on from. Every rank calls it at once.
    """
    if fault := run.engine.fault(weights=weights):
        raise DivergedError("\n  ".join([*described(run, fault), *remedies(run)]), last_good(run))


def count(run: Run, measured: Measured) -> None:
    """Count an update that was skipped. Raises DivergedError after so many in a row that it is hopeless."""
    if measured.skipped is None:
        run.skipped_in_a_row = 0
        return
    run.skipped += 1
    run.skipped_in_a_row += 1
    if run.skipped_in_a_row < MOST_SKIPPED:
        return
    first, *more = described(run, measured.skipped)
    all_before = f"so it was in the {MOST_SKIPPED - 1} updates before, and all were skipped"
    raise DivergedError("\n  ".join([first, *more, all_before, *remedies(run)]), last_good(run))


def described(run: Run, fault: Fault) -> list[str]:
    """The step, phase, model and numbers of a fault, in lines."""
    turn = turn_of(run.system.phases(), fault.update)
    of_many = f" (update {turn.repeat} of {turn.phase.repeat})" if turn.phase.repeat > 1 else ""
    place = f"step {turn.step}, phase {turn.label}{of_many}"
    if fault.where == "loss":
        values = dict(fault.values)
        loss, trained = values.pop("loss"), " and ".join(turn.phase.updates)
        world = run.engine.world
        of_rank = f", of rank {fault.micro_batch % world}" if world > 1 else ""
        micro = f"micro-batch {fault.micro_batch}{of_rank}"
        lines = [f"{place}: the loss that {trained} should minimise is {loss} ({micro})"]
        return [*lines, f"its terms: {shown(values.items())}"] if values else lines
    if fault.where == "gradient":
        said = f"the loss is finite, but the gradient of model {fault.model} is not"
    else:
        said = f"loss and gradient were finite, but the weights of model {fault.model} are not any more"
    return [f"{place}: {said}", f"parameters: {', '.join(names(fault.values))}"]


def shown(values: Iterable[tuple[str, float]]) -> str:
    """Terms and their values, those first that are not finite."""
    ordered = sorted(values, key=lambda pair: math.isfinite(pair[1]))
    return ", ".join(f"{name} {value:.4g}" for name, value in ordered)


def names(values: Iterable[str]) -> list[str]:
    """The first few, and how many more there are."""
    found = list(values)
    return [*found[:MOST_SHOWN], *([f"and {len(found) - MOST_SHOWN} more"] if found[MOST_SHOWN:] else [])]


def remedies(run: Run) -> list[str]:
    """What is left, and what may help."""
    kept = last_good(run)
    skip = "" if run.recipe.train.on_nonfinite == "skip" else ', or train.on_nonfinite = "skip"'
    return [
        f"a lower lr or a clip may help{skip}",
        "nothing was saved before" if kept is None else f"the last good checkpoint: {kept}",
    ]


def last_good(run: Run) -> Path | None:
    """The newest checkpoint of the run, or the one that it started from; none was written after a fault."""
    with suppress(CheckpointError):  # the run ends for another reason
        run.writer.finished(waits=True)
    own = checkpoints_in(run.folder)
    return own[-1] if own else run.place.checkpoint
