"""A recipe from a file: read, overridden, resolved, decoded, checked."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dtrain.errors import RecipeError, RecipeErrors
from dtrain.recipe.check import mistakes
from dtrain.recipe.decode import decode
from dtrain.recipe.read import Place, override, read, resolve
from dtrain.recipe.values import Recipe
from dtrain.spec.imports import ImportPathError, find
from dtrain.spec.table import Imported
from dtrain.systems.base import System


def load(path: str | Path, overrides: Sequence[str] = (), *, imports: bool = True) -> Recipe:
    """Read a recipe; overrides look like `optimizers.generator.lr=1e-4`.

    A relative path in the recipe is relative to its file, one in an override to the working folder.
    Without `imports` nothing that the recipe names is imported: a system of one's own stays unread.
    Raises RecipeErrors with every mistake at once, each under its dotted key.
    """
    path = Path(path)
    table = read(path)
    said_here = override(table, overrides)
    return from_table(table, folder=path.parent, source=str(path), said_here=said_here, imports=imports)


def from_table(
    table: dict[str, Any],
    *,
    folder: Path,
    source: str,
    said_here: Sequence[Place] = (),
    imports: bool = True,
) -> Recipe:
    """Resolve, decode and check a table, whose relative paths are relative to `folder`.

    `source` names it in errors; `said_here` are the places that the command line set.
    """
    table, errors = resolve(table)
    table, spread = _spread_star(table)
    recipe, found = decode(Recipe, table)
    errors += [error for error in found if "${" not in error.message]  # that was said already
    if recipe is not None and imports and isinstance(recipe.system, Imported):
        system, found = _import_system(recipe.system)
        errors += found
        recipe = dataclasses.replace(recipe, system=system or recipe.system)
    if recipe is not None and not errors:
        recipe = _without(recipe, spread)
        recipe = _anchor(recipe, (), folder.absolute(), set(said_here))
        errors += mistakes(recipe)
    if errors:
        raise RecipeErrors(errors, source)
    assert isinstance(recipe, Recipe)
    return recipe


def _spread_star(table: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Give the optimizer "*" to every model that has none of its own; which models these are."""
    optimizers, models = table.get("optimizers"), table.get("models")
    if not isinstance(optimizers, dict) or not isinstance(models, dict) or "*" not in optimizers:
        return table, set()
    every = optimizers["*"]
    own = {name: optimizer for name, optimizer in optimizers.items() if name != "*"}
    return {**table, "optimizers": {**dict.fromkeys(models, every), **own}}, models.keys() - own.keys()


def _without(recipe: Recipe, spread: set[str]) -> Recipe:
    """Take the optimizer "*" from the models that no phase trains: they are frozen."""
    if isinstance(recipe.system, Imported):
        return recipe
    trained = {name for phase in recipe.system.phases() for name in phase.updates}
    kept = {name: o for name, o in recipe.optimizers.items() if name in trained or name not in spread}
    return dataclasses.replace(recipe, optimizers=MappingProxyType(kept))


def _import_system(
    imported: Imported,
) -> tuple[System | None, list[RecipeError]]:
    try:
        cls = find(imported.path, System)
    except ImportPathError as error:
        return None, [RecipeError("system.kind", str(error))]
    if not isinstance(cls, type):
        return None, [RecipeError("system.kind", f"{imported.path!r} is not a System")]
    system, errors = decode(cls, imported.arguments)
    return system, [RecipeError(f"system.{error.key}".rstrip("."), error.message) for error in errors]


def _anchor(value: Any, place: Place, folder: Path, said_here: set[Place]) -> Any:
    """Make every path absolute: from the recipe's folder, or the working one if said on the command line."""
    if isinstance(value, Path):
        is_said = any(place[: len(said)] == said for said in said_here)
        return Path(os.path.normpath((Path.cwd() if is_said else folder) / value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        moved = {name: _anchor(item, (*place, name), folder, said_here) for name, item in fields.items()}
        changed = {name: item for name, item in moved.items() if item is not fields[name]}
        return dataclasses.replace(value, **changed) if changed else value
    if isinstance(value, Mapping):
        moved = {key: _anchor(item, (*place, key), folder, said_here) for key, item in value.items()}
        return MappingProxyType(moved) if any(moved[key] is not value[key] for key in value) else value
    return value
