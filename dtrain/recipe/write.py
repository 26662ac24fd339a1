"""From a value back to a table and to TOML: what is read again is the same recipe."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from dtrain.recipe.values import Recipe
from dtrain.spec.imports import written_path
from dtrain.spec.layers import ImportedLayer
from dtrain.spec.optimizers import ImportedOptimizer
from dtrain.spec.rates import ImportedSchedule
from dtrain.spec.table import Imported, Open, key_of


def encode(value: Any) -> Any:
    """Plain tables, arrays and scalars; keys that are left out stay out."""
    if isinstance(value, Imported | ImportedLayer | ImportedOptimizer | ImportedSchedule):
        own = {key_of(f.name): encode(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        path, arguments = own.pop("path"), own.pop("arguments")
        return {"kind": path} | _present(own) | arguments
    if isinstance(value, Open):
        own = {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
        arguments = own.pop("arguments")
        return _present(own) | arguments
    if dataclasses.is_dataclass(value):
        kind = vars(type(value)).get("kind", "")  # its own: a class derived from a kind is another
        if not kind and _is_family_member(value):
            kind = written_path(type(value))
        table = {key_of(f.name): encode(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        if isinstance(value, Recipe):
            table["sweep"] = None  # of trials, each of which is a recipe of its own: no run depends on it
        return ({"kind": kind} if kind else {}) | _present(table)
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def to_toml(recipe: Recipe) -> str:
    """The canonical text of a resolved recipe."""
    return tomli_w.dumps(encode(recipe))


def _present(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value is not None and value != {}}


def _is_family_member(value: Any) -> bool:
    """Whether this is a user's own class of a family whose members are told apart by `kind`."""
    from dtrain.systems.base import System

    return isinstance(value, System)
