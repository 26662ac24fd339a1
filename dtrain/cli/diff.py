"""dtrain diff: what differs between two recipes, runs or checkpoints."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dtrain.cli.tables import columns
from dtrain.errors import CheckpointError, DtrainError
from dtrain.format.files import MANIFEST, RECIPE

if TYPE_CHECKING:
    from dtrain.recipe.values import Recipe

SAME, DIFFERENT = 0, 1  # as of diff(1)
WIDEST = 40  # characters of a value, so that both stand on a line


@dataclass(frozen=True)
class Side:
    """What is compared: a recipe, and the metrics of its run up to a step."""

    recipe: "Recipe"
    metrics: Mapping[str, tuple[int, float]] = field(default_factory=dict)  # the last of each, and its step


@click.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
def diff(first: Path, second: Path) -> int:
    """Print what differs in meaning between two recipes, runs or checkpoints.

    Defaults are written out, references, stacks and extended files resolved; nothing that a recipe names is
    imported. Of runs and checkpoints the last metrics are compared, too. Ends with 0 if the recipes are the
    same and with 1 if they differ.
    """
    from dtrain.recipe.compare import differences

    a, b = open_side(first), open_side(second)
    found = differences(a.recipe, b.recipe)
    if found:
        rows = [(each.key, _shown(each.first), _shown(each.second)) for each in found]
        click.echo("\n".join(columns([("", str(first), str(second)), *rows])))
    else:
        click.echo("the recipes are the same in meaning")
    if lines := list(metric_rows(a, b)):
        click.echo("\n" + "\n".join(columns([("last metrics", "first", "second", "change"), *lines])))
    return DIFFERENT if found else SAME


def open_side(path: Path) -> Side:
    """A recipe's file, a checkpoint, or a run, the newest of runs/NAME. Raises DtrainError if it is none."""
    from dtrain.format.metrics import METRICS, last_values
    from dtrain.format.runs import run_at
    from dtrain.recipe.load import from_document, read
    from dtrain.spec.trust import Trust

    def recipe_of(file: Path) -> "Recipe":
        return from_document(read(file, trust=Trust()), imports=False, vets=False)

    if path.is_file():
        return Side(from_document(read(path), imports=False, vets=False))
    if not path.exists():
        raise DtrainError(f"{path} does not exist; a recipe, a run or a checkpoint would do")
    if (path / MANIFEST).is_file():
        step = int(path.name.rpartition("-")[2]) if path.name.rpartition("-")[2].isdigit() else None
        return Side(recipe_of(path / RECIPE), last_values(path.parent.parent / METRICS, step))
    try:
        run = run_at(path)
    except CheckpointError:
        raise DtrainError(f"{path} is none; a recipe, a run or a checkpoint would do") from None
    return Side(recipe_of(run / RECIPE), last_values(run / METRICS, None))


def metric_rows(a: Side, b: Side) -> Iterator[tuple[str, str, str, str]]:
    """Name, both values and the change, evaluations first; the step where it is not the same."""
    from dtrain.format.metrics import EVALUATED

    names = sorted(
        a.metrics.keys() | b.metrics.keys(), key=lambda name: (not name.startswith(EVALUATED), name)
    )
    for name in names:
        first, second = a.metrics.get(name), b.metrics.get(name)
        is_apart = first is not None and second is not None and first[0] != second[0]
        shown = [
            "-" if side is None else f"{side[1]:.4g}" + (f" (step {side[0]})" if is_apart else "")
            for side in (first, second)
        ]
        change = "" if first is None or second is None else f"{second[1] - first[1]:+.4g}"
        yield name, shown[0], shown[1], change


def _shown(value: Any) -> str:
    from dtrain.recipe.compare import NOTHING
    from dtrain.spec.words import written

    if value is NOTHING:
        return "-"
    text = written(value)
    return text if len(text) <= WIDEST else text[: WIDEST - 3] + "..."
