"""dtrain check: find a recipe's mistakes and print what it would do."""

from collections.abc import Sequence
from pathlib import Path

import click

from dtrain.cli.arguments import a_recipe
from dtrain.cli.arguments import scale as scale_option
from dtrain.errors import DtrainError, RecipeError, RecipeErrors


@click.command()
@a_recipe
@scale_option
@click.option("--processes", type=click.IntRange(min=1), default=1, help="Plan for so many processes.")
@click.option("--imports", is_flag=True, help="Import what the recipe names, and check its arguments.")
@click.option("--json", "as_json", is_flag=True, help="Print the mistakes as JSON, for editors and CI.")
def check(
    recipe: Path,
    overrides: Sequence[str],
    set_files: Sequence[Path],
    untrusted: bool,
    trust: Sequence[str],
    scale_file: Path | None,
    processes: int,
    imports: bool,
    as_json: bool,
) -> int:
    """Find a recipe's mistakes, and those of a launch's --scale file, and print its plan.

    The plan has the layers with their shapes, the phases of a step, updates, memory and the size of a
    checkpoint. Ends with 0 if the recipe is good and with 2 if it has mistakes.
    """
    from dtrain.cli.plan import print_plan
    from dtrain.cli.trust import trust_of
    from dtrain.recipe.cells import check_trials
    from dtrain.recipe.document import copied
    from dtrain.recipe.fit import check_data
    from dtrain.recipe.load import from_document, read
    from dtrain.recipe.locate import located
    from dtrain.scale.asked import read_scale
    from dtrain.scale.fit import misfits

    try:
        document = read(recipe, overrides, set_files=set_files, trust=trust_of(untrusted, trust))
        written = copied(document)
        loaded = from_document(document, imports=imports, hashes=False)
        scale = read_scale({}, scale_file, loaded)
        if errors := list(misfits(loaded, scale.engine)):
            raise located(document, errors)
        data = check_data(loaded, document, processes)
        if loaded.sweep is not None:
            check_trials(written, loaded.sweep, imports=imports, processes=processes)
    except DtrainError as error:
        if not as_json:
            raise
        return _print_json(_of_recipe(error, str(recipe)))
    if as_json:
        return _print_json(None)
    print_plan(loaded, data, scale.engine, processes)
    return 0


def _of_recipe(error: DtrainError, source: str) -> RecipeErrors:
    """Any mistake in the form of a recipe's."""
    if isinstance(error, RecipeErrors):
        return error
    one = error if isinstance(error, RecipeError) else RecipeError("", str(error))
    return RecipeErrors([one], source)


def _print_json(errors: RecipeErrors | None) -> int:
    import json

    from dtrain.cli.mistakes import as_json

    click.echo(json.dumps(as_json(errors), indent=2))
    return 0 if errors is None else 2
