"""dtrain check: find a recipe's mistakes and print what it would do."""

from typing import Annotated

import typer

from dtrain.cli.arguments import Overrides, RecipePath


def check(
    recipe: RecipePath,
    overrides: Overrides = None,
    processes: Annotated[int, typer.Option(min=1, help="Plan for so many processes.")] = 1,
) -> None:
    """Check a recipe without training: its layers, phases, updates, memory and size of a checkpoint."""
    from dtrain.cli.plan import print_plan
    from dtrain.recipe.load import load

    print_plan(load(recipe, overrides or (), imports=False), processes)
