"""dtrain show: the resolved recipe."""

from dtrain.cli.arguments import Overrides, RecipePath


def show(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Print a recipe with its references resolved and every default written out."""
    from dtrain.recipe.load import load
    from dtrain.recipe.write import to_toml

    print(to_toml(load(recipe, overrides or (), imports=False)), end="")
