"""A checkpoint taken up by a run that was made ready."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli

from dtrain.checkpoint.origin import origin_of
from dtrain.checkpoint.read import Checkpoint, all_tensors, checkpoints_in, open_checkpoint
from dtrain.checkpoint.verify import check_fits
from dtrain.data.identity import PARTS, differences
from dtrain.engines.together import agreed
from dtrain.errors import CheckpointError, DataError, DtrainError
from dtrain.format.files import folder_name
from dtrain.recipe.load import from_checkpoint
from dtrain.recipe.values import Recipe
from dtrain.recipe.write import encode
from dtrain.spec.trust import Trust

if TYPE_CHECKING:
    from dtrain.run import Run


def restore(run: "Run", path: Path, *, accept_data: bool, verify: bool, share: tuple[int, int]) -> None:
    """Take up weights, optimizers and all else from the checkpoint at `path`.

    With `verify` all its hashes are checked, by each rank its share of them: which of the processes of its
    machine it is, and of how many, as another machine may read another copy. Raises CheckpointError if it is
    not whole or does not fit the recipe, DataError if it was trained on other data than there is now and that
    is not accepted.
    """

    asked = verify or run.recipe.checkpoint.verify or None

    def read() -> tuple[Checkpoint, dict[str, dict[str, Any]]]:
        checkpoint = _opened(path, asked, share)
        _check_optimizers(run.recipe, tomli.loads(checkpoint.recipe)["optimizers"])
        run.other_data = _compare_data(checkpoint, run.data, accept_data)
        return checkpoint, all_tensors(checkpoint)

    try:
        # By all ranks or none, as what follows may be collective.
        checkpoint, tensors = agreed(run.engine, read)
        if checkpoint.step >= run.total and run.folder not in path.parents:
            raise CheckpointError(f"it has done {checkpoint.step} steps, and the recipe asks for {run.total}")
        run.engine.restore(tensors, checkpoint.state)
        run.schedules.restore(checkpoint.state.get("schedules", {}))
        run.step = checkpoint.step
        is_own = run.folder in path.parents
        run.origin = checkpoint.manifest.get("origin") if is_own else origin_of(checkpoint)
        is_other = "train" in run.other_data
        run.data = {**run.data, "since": run.step if is_other else checkpoint.state["data"].get("since", 0)}
        run.skipped, run.skipped_in_a_row = checkpoint.state.get("skipped", (0, 0))
        run.best.restore(checkpoint.state["best"], is_there=lambda step: _saved(run, step).is_dir())
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"{path} does not hold what this dtrain expects: {error!r}") from error
    except CheckpointError as error:
        place = "" if str(path) in str(error) else f"{path}: "
        raise CheckpointError(f"{place}{error}{_way_out(path, asked)}") from None


def _opened(path: Path, hashes: bool | None, share: tuple[int, int] = (0, 1)) -> Checkpoint:
    checkpoint = open_checkpoint(path, hashes=hashes, share=share)
    check_fits(checkpoint, from_checkpoint(checkpoint.recipe, folder=path, trust=Trust()))
    return checkpoint


def _way_out(path: Path, hashes: bool | None) -> str:
    """What can be done where a checkpoint is damaged and an older one is not; nothing if it is not."""
    older = [found for found in checkpoints_in(path.parent.parent) if found.name < path.name]
    for found in (path, *reversed(older)):
        try:
            _opened(found, hashes)
        except DtrainError:
            continue
        break
    else:
        return ""
    if found == path:
        return ""
    return f"; {found} is whole: once {path} is deleted the run is carried on from there"


def _compare_data(checkpoint: Checkpoint, now: Mapping[str, Any], accept: bool) -> dict[str, str]:
    """What of each part is other than it was, in words. Raises DataError unless that is accepted.

    Another number of examples gives another order of them from this step on, as if there had always been so
    many. What models are given keeps its shapes, though.
    """
    then = checkpoint.state["data"]
    if then["fields"] != now["fields"]:
        raise DataError(
            f"{checkpoint.path} was trained on examples of shapes {_listed(then['fields'])}, and they have "
            f"{_listed(now['fields'])} now; --fresh begins anew"
        )
    # A checkpoint from before there were fingerprints knows how many examples there were.
    known = then["fingerprints"] if "fingerprints" in then else {"train": {"examples": then["examples"]}}
    found = differences(known, now["fingerprints"])
    if found and not accept:
        said = "; ".join(f"the data of {PARTS[part]} has {words}" for part, words in found.items())
        raise DataError(
            f"{checkpoint.path} was trained on other data: {said}; --accept-data goes on with what there is "
            "now, --fresh begins anew"
        )
    return found


def _listed(shapes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {tuple(shapes[name])}" for name in shapes)


def _saved(run: "Run", step: int) -> Path:
    return run.folder / "checkpoints" / folder_name(step)


def _check_optimizers(recipe: Recipe, saved: Mapping[str, Any]) -> None:
    """Raise CheckpointError where another kind of optimizer left its state; shapes may agree even so."""
    for name, table in encode(recipe.optimizers).items():
        kind = saved[name]["kind"] if name in saved else table["kind"]
        if kind != table["kind"]:
            raise CheckpointError(
                f"optimizers.{name} was {kind} when it was saved and is {table['kind']} now"
            )
