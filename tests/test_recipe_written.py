"""What is written of a recipe is read again as the same recipe: the shipped ones, and any other."""

import os
from collections import Counter
from pathlib import Path

import pytest
from conftest import written
from generated import recipes
from hypothesis import HealthCheck, Phase, given, settings
from reading import RECIPES
from test_recipe_composition import STACKED

import dtrain
from dtrain.recipe.load import from_table
from dtrain.recipe.values import Recipe
from dtrain.recipe.write import encode, to_toml
from dtrain.spec.table import Imported
from dtrain.systems.base import System

COUNT = 5_000 if os.environ.get("DTRAIN_TEST_LONG") == "1" else 300


def assert_comes_back(recipe: Recipe, path: Path) -> None:
    text = to_toml(recipe)
    path.write_text(text, encoding="utf-8", newline="")
    again = dtrain.load(path, imports=False)
    assert again == recipe
    assert to_toml(again) == text
    assert from_table(encode(recipe), folder=Path("/nowhere"), source="again", imports=False) == recipe


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_a_shipped_recipe_comes_back_as_it_was(shipped: Path, path: Path, tmp_path: Path) -> None:
    assert_comes_back(dtrain.load(shipped / path.name, imports=False), tmp_path / "again.toml")


def test_a_recipe_put_together_from_files_references_and_stacks_comes_back_whole(tmp_path: Path) -> None:
    written(tmp_path, "base.toml", STACKED)
    (tmp_path / "r.toml").write_text(
        'extends = "base.toml"\nseed = "${hyperparameters.s}"\n[hyperparameters]\ns = 3\nlist = [{ a = 1 }]\n'
    )
    assert_comes_back(dtrain.load(tmp_path / "r.toml", ["every.log=7"]), tmp_path / "again.toml")


def test_any_recipe_comes_back_as_it_was(tmp_path: Path) -> None:
    seen: Counter[str] = Counter()

    @settings(
        max_examples=COUNT,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],  # to shrink such a recipe takes minutes
        suppress_health_check=list(HealthCheck),
    )
    @given(recipes())
    def comes_back(recipe: Recipe) -> None:
        seen[recipe.system.kind if isinstance(recipe.system, System) else "imported"] += 1
        seen["imported data"] += isinstance(recipe.data, Imported)
        assert_comes_back(recipe, tmp_path / "again.toml")

    comes_back()
    print(dict(seen))
    assert min(seen[kind] for kind in ("gan", "classifier", "imported", "imported data")) > COUNT / 20, seen
