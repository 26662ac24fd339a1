"""The parts of a recipe that are well formed one by one, though others may not be."""

import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from dtrain.errors import RecipeError
from dtrain.recipe.keys import TOP
from dtrain.recipe.values import Recipe
from dtrain.spec.axes import Axis
from dtrain.spec.decode import BROKEN, MANY, TOO_MANY, Decoder, fields_of
from dtrain.spec.models import StoredModel
from dtrain.spec.words import dotted, nearest, quoted, show

MODEL = re.compile(r"[\w-]+")  # the name of one
NAMED = ("models", "optimizers", "averages")  # tables by model


@dataclass
class Parts:
    """What could be decoded; of `models`, `optimizers` and `averages` the good entries."""

    table: Mapping[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    errors: list[RecipeError] = field(default_factory=list)

    def names(self, key: str) -> list[str]:
        """The names that stand in a table, whether or not what stands under them is good."""
        tables = [self.table.get(name) for name in (key, *self.misspelt(key))]
        return [name for table in tables if isinstance(table, dict) for name in table]

    def misspelt(self, key: str) -> list[str]:
        """The unknown keys that were meant to be a certain one."""
        return [other for other, meant in self._meant.items() if meant == key]

    @cached_property
    def _meant(self) -> dict[str, str | None]:
        fields = fields_of(Recipe)
        unknown = [key for key in self.table if key not in fields]
        return {key: nearest(key, fields) for key in unknown[:MANY]}

    def recipe(self) -> Recipe:
        """The recipe, where nothing is broken."""
        frozen = {key: MappingProxyType(dict(self.values[key])) for key in NAMED if key in self.values}
        return Recipe(**{**self.values, **frozen})


def decode_parts(table: Mapping[str, Any]) -> Parts:
    """Decode each table of a recipe for itself."""
    parts, decoder = Parts(table), Decoder()
    fields = fields_of(Recipe)
    unknown = [key for key in table if key not in fields]
    missing = [key for key, (_, is_required) in fields.items() if is_required and key not in table]
    decoder.name(unknown, missing, [*missing, *fields, *TOP], ())
    unquoted = dict(_unquoted(table))
    for key in (key for key in table if key in fields):
        if key == "sweep" and unquoted:
            decoder.mistakes += unquoted.values()
        elif key in NAMED and isinstance(table[key], dict):
            inside = typing.get_args(fields[key][0])[-1]
            entries = parts.values[key] = {}
            for name, item in table[key].items():
                if key == "models" and not MODEL.fullmatch(name):
                    said = f"found {show(name)}; letters, digits, dashes and underscores would do"
                    decoder.mistakes.append(RecipeError(dotted((key, name)), said, is_key=True))
                value = decoder.read(inside, item, (key, name))
                if value is not BROKEN and not isinstance(value, StoredModel):  # that is not what it is yet
                    entries[name] = value
                if len(decoder.mistakes) > TOO_MANY:
                    break
        else:
            value = decoder.read(fields[key][0], table[key], (key,))
            if value is not BROKEN:
                parts.values[key] = value
    parts.errors = decoder.mistakes
    return parts


def _unquoted(table: Mapping[str, Any]) -> Iterator[tuple[str, RecipeError]]:
    """Axes of a sweep whose dotted keys have no quotes, so that TOML takes them for tables in tables."""
    match table:
        case {"sweep": {"axes": {**axes}}}:
            for key, value in axes.items():
                place: tuple[str, ...] = (str(key),)
                if "." in place[0]:
                    continue
                while isinstance(value, dict) and len(value) and not value.keys() & fields_of(Axis).keys():
                    inner, value = next(iter(value.items()))
                    place = (*place, inner)
                if len(place) > 1 and isinstance(value, list | dict):
                    said = f"the dotted key of an axis stands in quotes: {quoted(dotted(place))} would do"
                    yield str(key), RecipeError(dotted(("sweep", "axes", *place)), said, is_key=True)
