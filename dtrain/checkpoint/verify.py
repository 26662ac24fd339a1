"""Whether a checkpoint is what it says: its bytes, its tensors, its recipe. Nothing of it is carried out."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.errors import CheckpointError, RecipeError, RecipeErrors
from dtrain.format.checkpoints import Checkpoint, renamed
from dtrain.format.files import MANIFEST, RECIPE, STATE
from dtrain.format.hashes import Problem, Tell, by_part, headers_of, part_of
from dtrain.format.whole import MOST, Looked, leftovers, look
from dtrain.recipe.load import from_checkpoint
from dtrain.recipe.tensors import left_open, misfits
from dtrain.recipe.values import Recipe
from dtrain.spec.trust import Trust


@dataclass(frozen=True)
class Report:
    """What was found in a checkpoint; `remarks` are no problems."""

    path: Path | str  # the URL of one that lies elsewhere
    problems: tuple[Problem, ...]
    remarks: tuple[str, ...]
    files: int  # the manifest among them
    tensors: int
    size: int  # bytes of these files
    seconds: float

    @property
    def is_whole(self) -> bool:
        """Whether there is no problem."""
        return not self.problems


def verify(path: Path, tell: Tell = lambda _: None) -> Report:
    """Check every byte of a checkpoint, and all that can be said of it without importing anything.

    Files, tensors and indexes are compared with the manifest, tensors with the recipe's models, optimizers
    and averages. Every problem is in the report, not just the first. `tell` hears of each so many bytes read.
    """
    started = time.monotonic()
    found = look(path, tell)
    remarks = []
    if said := renamed(path, found.manifest):
        found.add([Problem(MANIFEST, "", said)])
    if found.recipe is not None:
        try:
            recipe = from_checkpoint(found.recipe, folder=path, trust=Trust())
            found.add(_misfits(found, recipe))
            remarks += [f"{said}: shapes are only known to a run" for said in left_open(recipe)]
        except RecipeErrors as mistakes:
            found.add(Problem(RECIPE, "", str(mistake)) for mistake in mistakes.errors)
        except (RecipeError, CheckpointError) as error:
            found.add([Problem(RECIPE, "", f"{path / RECIPE} is not one that this dtrain reads: {error}")])
    if len(found.problems) == MOST:
        remarks.append(f"there may be more than these {MOST:,} problems")
    remarks += [f"{path / name} is in no manifest" for name in leftovers(path, found.manifest)]
    manifest = path / MANIFEST
    own = [manifest.stat().st_size] if manifest.is_file() else []
    counts = len(found.manifest.get("files", {})) + len(own), len(found.manifest.get("tensors", {}))
    seconds = time.monotonic() - started
    return Report(path, tuple(found.problems), tuple(remarks), *counts, found.size + sum(own), seconds)


def check_fits(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Raise CheckpointError unless a checkpoint that was opened holds the tensors of its own recipe.

    Whoever can write a manifest can write any tensors, too: of shapes and types that no optimizer expects.
    """
    if said := _uncounted(checkpoint.state, recipe):
        raise CheckpointError(f"{checkpoint.path / STATE} {said}")
    numbers = checkpoint.state.get("optimizers", {}).get("numbers", {})
    parts = by_part(headers_of(checkpoint.path, checkpoint.manifest))
    for part, _, said in misfits(recipe, parts, numbers):
        raise CheckpointError(f"{checkpoint.path}: {part} do not fit the recipe: {said}")


def _uncounted(state: Mapping[str, Any], recipe: Recipe) -> str | None:
    """What is wrong where it is not said of each average how many updates are in it."""
    counts = state.get("averages")  # older checkpoints have none
    if counts is None or set(counts) == set(recipe.averages):
        return None
    said, wanted = (", ".join(names) or "none" for names in (counts, recipe.averages))
    return f"counts averages of {said}, but the recipe's are of {wanted}"


def _misfits(found: Looked, recipe: Recipe) -> Iterator[Problem]:
    """Where the tensors are not those of the recipe; of parts that could not be read nothing is said."""
    state: Mapping[str, Any] = found.state or {}
    if said := _uncounted(state, recipe):
        yield Problem(STATE, "", f"{found.path / STATE} {said}")
    numbers = state.get("optimizers", {}).get("numbers", {})
    for part, name, said in misfits(recipe, found.parts, numbers):
        own = (file for file, tensors in found.headers.items() if part_of(file) == part and name in tensors)
        file = next(own, STATE if name in numbers else "")
        yield Problem(file, name, f"{found.path / file}: {part} do not fit the recipe: {said}")
