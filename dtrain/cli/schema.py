"""dtrain schema: a JSON Schema of recipes, for editors."""

from pathlib import Path

import click

FILE = "recipe.schema.json"  # beside the recipes, whose first line is `#:schema ./recipe.schema.json`


@click.command()
@click.option("--output", type=click.Path(path_type=Path), help="Write it into this file.")
def schema(output: Path | None) -> None:
    """Print a JSON Schema of recipes, with which editors complete and check them.

    Taplo and Even Better TOML find it by a recipe's first line, "#:schema ./recipe.schema.json".
    """
    from dtrain.recipe.schema import schema_text

    if output is None:
        click.echo(schema_text(), nl=False)
    else:
        output.write_text(schema_text(), encoding="utf-8")
