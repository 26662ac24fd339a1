"""dtrain show: the resolved recipe."""

from collections.abc import Sequence
from pathlib import Path

import click

from dtrain.cli.arguments import a_recipe


@click.command()
@a_recipe
@click.option("--origin", is_flag=True, help="Print a line for each value, with where it came from.")
def show(
    recipe: Path,
    overrides: Sequence[str],
    set_files: Sequence[Path],
    untrusted: bool,
    trust: Sequence[str],
    origin: bool,
) -> None:
    """Print a recipe resolved, with every default written out."""
    from dtrain.cli.trust import trust_of
    from dtrain.recipe.load import from_document, read
    from dtrain.recipe.origins import lines
    from dtrain.recipe.write import to_toml

    document = read(recipe, overrides, set_files=set_files, trust=trust_of(untrusted, trust))
    resolved = from_document(document, imports=False, vets=False)
    click.echo("\n".join(lines(resolved, document)) if origin else to_toml(resolved).rstrip("\n"))
