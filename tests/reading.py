"""Recipes as text, read from a table or a file, and every mistake that is found in them."""

from pathlib import Path
from typing import Any

import pytest
import tomli
from conftest import GAN

import dtrain
from dtrain.errors import RecipeError, RecipeErrors
from dtrain.recipe.load import from_table
from dtrain.recipe.values import Recipe

RECIPES = Path(dtrain.__file__).parents[1] / "recipes"


def read(text: str, folder: Path = Path("/nowhere"), **options: Any) -> Recipe:
    return from_table(tomli.loads(text), folder=folder, source="r.toml", **options)


def mistakes_in(text: str) -> dict[str, str]:
    """Every mistake of a recipe, by key."""
    with pytest.raises(RecipeErrors) as caught:
        read(text)
    return {error.key: error.message for error in caught.value.errors}


def mistakes_of(path: Path, *overrides: str, **options: Any) -> list[RecipeError]:
    """Every mistake of a recipe's file."""
    with pytest.raises(RecipeErrors) as caught:
        dtrain.load(path, overrides, **options)
    return list(caught.value.errors)


def spots_of(errors: list[RecipeError]) -> list[tuple[str, int, int]]:
    """Where each mistake stands: the file's name, line and column."""
    return [
        (Path(error.spot.source).name, error.spot.line, error.spot.column) if error.spot else ("", 0, 0)
        for error in errors
    ]


def changed(old: str, new: str, recipe: str = GAN) -> str:
    assert recipe.count(old) == 1, old
    return recipe.replace(old, new)


def marked(text: str) -> tuple[str, tuple[int, int]]:
    """A text without the one ^ in it, and the line and column where that stood."""
    assert text.count("^") == 1, text
    at = text.index("^")
    return text.replace("^", ""), (text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at))
