"""dtrain reproduce: a proof that a checkpoint came from its recipe."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import tomli

from dtrain.cli.arguments import hang_timeout as hang_timeout_option
from dtrain.cli.arguments import overrides as overrides_argument
from dtrain.cli.arguments import scale as scale_option
from dtrain.cli.arguments import trust as trust_option
from dtrain.cli.ending import MISTAKE
from dtrain.errors import CheckpointError
from dtrain.spec.words import visible

if TYPE_CHECKING:
    from dtrain.reproduce import Claim, Compared
    from dtrain.run import Run

MOST = 6  # tensors, or differences of the environment, that are shown
LONGEST = 80  # characters of a value


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@overrides_argument
@click.option("--until", metavar="STEP", type=click.IntRange(min=1), help="Stop after this step.")
@trust_option
@scale_option
@hang_timeout_option
def reproduce(
    checkpoint: Path,
    overrides: Sequence[str],
    until: int | None,
    trust: Sequence[str],
    scale_file: Path | None,
    hang_timeout: float,
) -> int:
    """Train a checkpoint's recipe again and compare every bit on the way.

    CHECKPOINT is one, or a run: then its newest. Of a run with train.deterministic the state after each step
    is compared, else that of every checkpoint which its run has saved. Where something differs, the first
    step and tensor are named, and what differs of the environment. The status is 0 if all is the same, or 2.
    Start as many processes as the run had. KEY=VALUE says where the data lies now, data.path=other.npz, say.
    Nothing is written.
    """
    from dtrain.cli.evaluate import recipe_of
    from dtrain.format.runs import checkpoint_at
    from dtrain.scale.asked import read_scale
    from dtrain.world.world import read_world, tie_to_launcher

    world = read_world(os.environ)
    tie_to_launcher(world)
    loaded, document = recipe_of(path := checkpoint_at(checkpoint), overrides, trust, None)

    from dtrain.checkpoint.read import open_checkpoint
    from dtrain.reproduce import claim_of
    from dtrain.reproduce import reproduce as reproduced
    from dtrain.run import setup

    claim = claim_of(open_checkpoint(path, hashes=True))
    last = until or claim.checkpoint.step
    threads = claim.checkpoint.manifest["environment"].get("threads")
    if "OMP_NUM_THREADS" not in os.environ and isinstance(threads, int):
        world = replace(world, threads=threads)  # sums are in another order on others
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dtrain-reproduce-"))
        run = stack.enter_context(
            setup(
                loaded,
                runs=folder,
                fresh=(origin := _origin(claim)) is None,
                resume=origin,
                copies=False,
                world=world,
                scale=read_scale(os.environ, scale_file, loaded),
                trust=document.trust,
                accept_data=True,
                hang_timeout=hang_timeout,
            )
        )
        begun = run.step
        if not begun < last <= run.total:
            raise CheckpointError(f"--until {last} is none of steps {begun + 1} to {run.total} of {path}")
        digested = 0 if claim.record is None else sum(begun < n.step <= last for n in claim.record.digests())
        if not digested and not any(begun < step <= last for step in claim.saved):
            first = min(step for step in claim.saved if step > begun)
            said = f"until step {last} nothing was recorded of {path} that could be compared"
            raise CheckpointError(f"{said}; --until {first} would do")
        say = click.echo if run.engine.rank == 0 else _mute
        for line in _before(run, claim, last):
            say(line)
        found = None
        for found in reproduced(run, claim, last):
            if not found.differing:
                say(f"step {found.step:>6}  {found.count} tensors are the same")
        if found is not None and found.differing:
            for line in _of_difference(run, claim, found):
                say(line)
            return MISTAKE
        say(_of_success(claim, begun, last, digested))
    return MISTAKE if any(_altered(claim)) else 0


def _mute(line: str) -> None:
    """What ranks other than the first say."""


def _origin(claim: "Claim") -> Path | None:
    """The checkpoint of another run that this one began from. Raises CheckpointError if it is not there."""
    from dtrain.checkpoint.origin import found_again

    origin = claim.checkpoint.manifest.get("origin")
    return found_again(origin, f"{claim.checkpoint.path} began") if origin else None


def _before(run: "Run", claim: "Claim", last: int) -> Iterator[str]:
    """What is known before a step is trained."""
    kept = "each step" if claim.has_digests else "the checkpoints that it saved"
    yield f"training {run.recipe.name} again to step {last} on {run.where}, and comparing {kept}"
    if origin := claim.checkpoint.manifest.get("origin"):
        yield f"it began from {origin['path']}, step {origin['step']}, which is another run's to prove"
    yield from _altered(claim)
    if differences := list(_surroundings(run, claim, last)):
        yield f"not as it was recorded: {'; '.join(differences)}"


def _altered(claim: "Claim") -> Iterator[str]:
    """What is not as the run itself has it, whatever training again shows."""
    from dtrain.recipe.compare import between

    stored = tomli.loads(claim.checkpoint.recipe)
    for each in between(tomli.loads(claim.recipe), stored, ()) if claim.recipe else ():
        run_says, says = _said(each.first), _said(each.second)
        yield f"ALTERED: {each.key} is {run_says} in the run's own recipe and {says} in the checkpoint's"
    for step, names in claim.altered.items():
        yield f"ALTERED: the checkpoint of step {step} is not what its run recorded of it: {_some(names)}"


def _of_success(claim: "Claim", begun: int, last: int, digested: int) -> str:
    """What was compared; `digested` of the steps had a digest."""
    steps = [step for step in sorted(claim.saved) if begun < step <= last]
    compared = [f"every tensor at step {_list(steps)}"] if steps else []
    if digested:
        which = "every step" if digested == last - begun else f"{digested} of {last - begun} steps"
        compared.append(f"a digest of each after {which} until {last}")
    return f"the same to the bit: {' and '.join(compared)}"


def _of_difference(run: "Run", claim: "Claim", found: "Compared") -> Iterator[str]:
    """The first step and tensors that differ, and what may be why."""
    what = "logged values" if found.by == "metrics" else "tensors"
    many = f"{len(found.differing)} of {found.count} {what}: {_some(found.differing)}"
    yield f"DIFFERS: the first difference is after step {found.step}, in {many}"
    if found.by == "hashes" and claim.has_digests:
        yield f"after step {found.step} the run was as it is here: that checkpoint was changed later"
    elif found.by == "digests" and found.equal_until:
        yield f"before it, all is the same to the bit until step {found.equal_until}"
    elif found.by != "digests":
        until = f"until step {found.equal_until} all that was recorded is the same"
        yield f"{until}; with train.deterministic = true the state after each step is"
    if not any(_surroundings(run, claim, found.step)):  # else it was said before
        yield "the recipe, versions, processor, device, world, engine, threads and data are as recorded"


def _surroundings(run: "Run", claim: "Claim", last: int) -> Iterator[str]:
    """What differs of recipe, environment and data between the run, until a step, and here."""
    said = dict.fromkeys((*_of_recipe(run, claim), *_of_lives(run, claim, last)))
    yield from list(said)[:MOST]
    if len(said) > MOST:
        yield f"and {len(said) - MOST} more"


def _of_recipe(run: "Run", claim: "Claim") -> Iterator[str]:
    from dtrain.recipe.compare import between
    from dtrain.recipe.write import encode

    for each in between(tomli.loads(claim.checkpoint.recipe), encode(run.recipe), ()):
        yield f"{each.key} was {_said(each.first)} and is {_said(each.second)}"


def _of_lives(run: "Run", claim: "Claim", last: int) -> Iterator[str]:
    from dtrain.recipe.compare import NOTHING, between

    manifest = claim.checkpoint.manifest
    lives = [(step, life) for step, life in claim.lives if step < last]
    if not lives:
        lives = [(0, {"environment": manifest["environment"], "data": claim.checkpoint.state.get("data")})]
    here: Mapping[str, Any] = {"environment": run.environment, "data": run.data}
    for begun, life in lives:
        when = f" (from step {begun} on)" if begun else ""
        for part in here:
            for each in between(life.get(part), here[part], (part,)):
                key = each.key.removeprefix("environment.").removeprefix("versions.")
                if key != "git" and NOTHING not in (each.first, each.second):
                    yield f"{key} was {_said(each.first)} and is {_said(each.second)}{when}"


def _said(value: Any) -> str:
    from dtrain.recipe.compare import NOTHING

    return "nothing" if value is NOTHING else visible(str(value))[:LONGEST]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return visible(", ".join(names[:MOST])) + more


def _list(steps: Sequence[int]) -> str:
    shown = [str(step) for step in steps]
    return ", ".join(shown if len(shown) < 8 else [*shown[:3], "...", *shown[-3:]])
