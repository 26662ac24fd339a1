"""dtrain evaluate: the metrics of a checkpoint."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dtrain.cli.arguments import hang_timeout as hang_timeout_option
from dtrain.cli.arguments import overrides as overrides_argument
from dtrain.cli.arguments import scale as scale_option
from dtrain.cli.arguments import trust as trust_option
from dtrain.errors import CheckpointError
from dtrain.format.files import RECIPE

if TYPE_CHECKING:
    from dtrain.recipe.document import Document
    from dtrain.recipe.values import Recipe


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@overrides_argument
@trust_option
@scale_option
@click.option("--best", is_flag=True, help="Of a run, the best checkpoint instead of the newest.")
@click.option("--data", type=click.Path(path_type=Path), help="Evaluate on this file or folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as JSON.")
@hang_timeout_option
def evaluate(
    checkpoint: Path,
    overrides: Sequence[str],
    trust: Sequence[str],
    scale_file: Path | None,
    best: bool,
    data: Path | None,
    as_json: bool,
    hang_timeout: float,
) -> None:
    """Evaluate a checkpoint, or the newest one of a run; at a URL (s3://...), too.

    KEY=VALUE changes its recipe: evaluate.metrics.top3={kind="top_k",k=3}, say, or data.path=other.npz. Only
    torch's and dtrain's own classes are imported for it, and what --trust names. Nothing is written.
    """
    from dtrain.format.runs import checkpoint_at
    from dtrain.scale.asked import read_scale
    from dtrain.world.launcher import contradictions
    from dtrain.world.world import read_world, tie_to_launcher

    world = read_world(os.environ)
    tie_to_launcher(world)
    scale = read_scale(os.environ, scale_file)
    path = checkpoint_at(checkpoint, best=best)
    loaded, document = recipe_of(path, overrides, trust, data)

    from dtrain.recipe.locate import located

    if against_launcher := list(contradictions(loaded.train, {}, world.size, world.asked)):
        raise located(document, against_launcher)

    from dtrain.evaluation import evaluate
    from dtrain.judge import open_evaluator

    with open_evaluator(loaded, path, world, scale, document.trust, hang_timeout) as evaluator:
        metrics = evaluate(evaluator)
        examples, processes = len(evaluator.loader.examples), evaluator.engine.world
    if world.rank == 0:
        said = {"checkpoint": str(path), "examples": examples, "processes": processes, "metrics": metrics}
        click.echo(json.dumps(said, indent=2) if as_json else "\n".join(table(path, examples, metrics)))


def recipe_of(
    path: Path, overrides: Sequence[str], trust: Sequence[str], data: Path | None
) -> "tuple[Recipe, Document]":
    """A checkpoint's recipe with overrides, checked, and its document. What it imports must be trusted."""
    from dtrain.cli.trust import trust_of
    from dtrain.data.source import Source
    from dtrain.recipe.fit import check_evaluation
    from dtrain.recipe.load import from_document, read
    from dtrain.spec.table import KINDS

    trusted = trust_of(True, trust)
    if not (path / RECIPE).is_file():
        raise CheckpointError(f"{path} lacks its {RECIPE}")
    document = read(path / RECIPE, overrides, trust=trusted)
    if data is not None:
        own = document.table.get("evaluate", {}).get("data")
        said = document.table["data"] if own is None else own
        source: Any = KINDS[Source].get(said["kind"], Source)
        key = "data" if own is None else "evaluate.data"
        place = f"{key}.{source.evaluated}={json.dumps(str(data))}"
        document = read(path / RECIPE, [*overrides, place], trust=trusted)
    loaded = from_document(document)
    check_evaluation(loaded, document)
    return loaded, document


def table(path: Path, examples: int, metrics: Mapping[str, float]) -> list[str]:
    """What is printed: the checkpoint, on how many examples, and a line a metric."""
    rows = [("checkpoint", str(path)), ("examples", f"{examples:,}")]
    rows += [(name, f"{value:.6g}") for name, value in metrics.items()]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]
