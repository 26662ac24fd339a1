"""A JSON Schema of a recipe as a user writes it, for editors; made of the types that recipes are read by.

A file without `extends` must be whole. One with it may lack anything, `extends = []` included, and a table
in it may leave its `kind` to the file below: so the schema has every table twice, `recipe` and `part`.
Taplo looks for what it may complete and explain in `properties` and `anyOf`, whatever the `kind`; and what an
`anyOf` complains of is that nothing in it fits. So a table of several kinds is `hinted` by the keys of all
kinds, which refuses nothing, and checked under `then`, where each complaint stands at its own key.
"""

import dataclasses
import json
import re
import typing
from collections.abc import Mapping
from typing import Any

from dtrain.data.dataset import Reading
from dtrain.data.source import Source
from dtrain.recipe.descriptions import descriptions, paragraphs
from dtrain.recipe.keys import arms_of, default_of
from dtrain.recipe.schema_values import REFERENCE, Schema, hinted, merged, referable, single
from dtrain.recipe.values import Recipe
from dtrain.recipe.write import encode
from dtrain.spec.blocks import Layers
from dtrain.spec.decode import ARRAYS, fields_of, own_keys, split
from dtrain.spec.layers import Layer
from dtrain.spec.table import KINDS, AtLeastOne, OneOf, Open

IMPORT_PATH = r"^[^:]+:[^\W\d][\w.]*$"
UNSET: Schema = {"const": "${unset}"}
# Of a table in an array Taplo looks up `items` of `items` when it completes; no layer is an array.
LOOKED_UP_TWICE: Schema = {"layer": {"items": {"$ref": "#/$defs/layer"}}}
WIDEST = 110  # characters of a line of the schema
STACK = 'layers that { kind = "use" } puts in; `parameters` must be given, `defaults` may be'


def schema_text() -> str:
    """The schema as it is written into a file."""
    return _written(recipe_schema(), 0) + "\n"


def _written(value: Any, depth: int) -> str:
    """JSON in lines of a readable length."""
    text = json.dumps(value, ensure_ascii=False)
    if len(text) + depth <= WIDEST or not isinstance(value, dict | list):
        return text
    space, end = "\n" + " " * (depth + 1), "\n" + " " * depth
    if isinstance(value, list):
        return "[" + ",".join(space + _written(item, depth + 1) for item in value) + end + "]"
    items = (f"{space}{json.dumps(key)}: {_written(item, depth + 1)}" for key, item in value.items())
    return "{" + ",".join(items) + end + "}"


def recipe_schema() -> Schema:
    """The schema of a recipe's file."""
    made: Schema = {"reference": {"type": "string", "pattern": REFERENCE}}
    for name, is_part in (("recipe", False), ("part", True)):
        made[name] = Maker(made, is_part).recipe()
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "dtrain recipe",
        "description": "A recipe of dtrain; docs/recipe.md explains it, `dtrain check` finds every mistake.",
        "type": "object",
        "anyOf": [True, {"$ref": "#/$defs/recipe"}],
        "if": {"required": ["extends"]},
        "then": {"$ref": "#/$defs/part"},
        "else": {"$ref": "#/$defs/recipe"},
        "$defs": made,
    }


class Maker:
    """Makes schemas of types; those of families and their kinds are put under names into `made`."""

    def __init__(self, made: Schema, is_part: bool):
        self.made = made
        self.is_part = is_part

    @property
    def inside(self) -> "Maker":
        """Of what is in an array: arrays are never merged, so nothing in them is a part."""
        return Maker(self.made, False)

    def recipe(self) -> Schema:
        """The file as a whole."""
        words = {"type": "array", "items": {"type": "string"}}
        stack = {
            "parameters": {"description": "what every use must give", **words},
            "defaults": {"description": "what a use may give", "type": "object"},
            "layers": self.value(Layers, "what is put in"),
        }
        more = {
            "extends": {
                "description": "files, relative to this one, whose tables this one is merged over; "
                "[] in a file that others extend",
                "type": ["string", "array"],
                "items": {"type": "string"},
            },
            "layers": {
                "description": STACK,
                "type": "object",
                "additionalProperties": self._closed(stack, ["layers"]),
            },
        }
        return self.table(Recipe, more)

    def table(self, cls: type, more: Schema | None = None) -> Schema:
        """A table with the keys of a class and perhaps `more`, and no others, unless they are arguments."""
        if issubclass(cls, Open):
            own = own_keys(cls)
            return {
                "properties": {k: v for k, v in self.keys(cls).items() if k in own},
                "required": _required(own),
            }
        return self._closed({**(more or {}), **self.keys(cls)}, _required(fields_of(cls)))

    def keys(self, cls: type) -> Schema:
        """The schemas of a class's keys."""
        said = descriptions(cls)
        return {
            key: self.value(target, said.get(key, ""), default_of(cls, key))
            for key, (target, _) in fields_of(cls).items()
        }

    def value(self, target: Any, text: str = "", default: Any = None) -> Schema:
        """What may stand under a key: a value of a type, or a reference."""
        inner, notes = split(target)
        about: Schema = {"description": text} if text else {}
        for note in notes:
            if isinstance(note, OneOf):
                found = self.family(note)
                return ({"anyOf": [found]} if "$ref" in found else found) | about
        arms = arms_of(target)
        if len(arms) == 1 and arms[0] is not target:
            return self.value(arms[0], text, default)
        if inner is Any:
            return about
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            about = about or {"description": paragraphs(inner)[0]}
            return about | referable("object") | self.table(inner)
        if isinstance(typing.get_origin(inner), type) and issubclass(typing.get_origin(inner), Mapping):
            inside = self.value(typing.get_args(inner)[-1])
            return about | referable("object") | {"additionalProperties": inside}
        if default is not None:
            about["default"] = encode(default)
        if len(arms) == 1 and typing.get_origin(inner) in ARRAYS:
            return about | self._array(inner, notes)
        tables = [arm for arm in arms if dataclasses.is_dataclass(arm)]
        return self._value_or_table(arms[0], tables[0], about) if tables else single(target, about)

    def _value_or_table(self, value: Any, cls: Any, about: Schema) -> Schema:
        """A number or an array, or a table in its place: a length in epochs, an axis that says more."""
        inner, notes = split(value)
        is_array = typing.get_origin(inner) in ARRAYS
        shown = {key: {"description": text} for key, text in descriptions(cls).items()}
        return {
            **about,
            "type": ["object", "array" if is_array else "number", "string"],
            "properties": shown,
            "if": {"type": "object"},
            "then": self._named(cls),
            "else": self._array(inner, notes) if is_array else single(value, {}),
        }

    def _named(self, cls: type) -> Schema:
        """A table that stands in several places, by its name."""
        name = f"{'part.' * self.is_part}table.{cls.__name__.lower()}"
        if name not in self.made:
            self.made[name] = {}  # it may hold itself
            self.made[name] = {"description": paragraphs(cls)[0]} | referable("object") | self.table(cls)
        return {"$ref": f"#/$defs/{name}"}

    def family(self, family: OneOf) -> Schema:
        """A table of one of several kinds."""
        name = self._name(family)
        if name not in self.made:
            self.made[name] = {}  # a layer may hold layers
            self.made[name] = {
                **referable("object"),
                "properties": self._hints(family),
                "if": {"type": "object"},
                "then": {"$ref": f"#/$defs/{name}.checked"},
                **LOOKED_UP_TWICE.get(name, {}),
            }
            self.made[f"{name}.checked"] = self._checked(family, name)
        return self.made[name] or {"$ref": f"#/$defs/{name}"}

    def _name(self, family: OneOf) -> str:
        built_in = "built_in." * (family.imported is None)  # one field may hold what another may not
        return f"{'part.' * self.is_part}{built_in}{family.base.__name__.lower()}"

    def _array(self, target: Any, notes: tuple[Any, ...]) -> Schema:
        inside = typing.get_args(target)
        made = referable("array") | {"items": self.inside._item(inside[0])}
        if inside[-1] is not ...:
            made |= {"minItems": len(inside), "maxItems": len(inside)}
        return made | ({"minItems": 1} if any(isinstance(note, AtLeastOne) for note in notes) else {})

    def _item(self, target: Any) -> Schema:
        for note in split(target)[1]:
            if isinstance(note, OneOf):
                self.family(note)
                return {"$ref": f"#/$defs/{self._name(note)}"}
        is_table = dataclasses.is_dataclass(target) and isinstance(target, type)
        return self._named(target) if is_table else self.value(target)

    def _checked(self, family: OneOf, name: str) -> Schema:
        """What is demanded of the tables of a family, by their `kind`."""
        tables = self._tables(family)
        names = {kind: f"{self._name(OneOf(_home(family, kind)))}.{kind}" for kind in tables}
        self.made |= {names[kind]: table for kind, table in tables.items()}
        rules: list[Schema] = [
            {"if": _has_kind({"const": kind}), "then": {"$ref": f"#/$defs/{names[kind]}"}} for kind in tables
        ]
        if family.otherwise is not None:
            without = self._part_of_model() if self.is_part else self.table(family.otherwise)
            rules.append({"if": {"required": ["kind"]}, "else": without})
        elif imported := self._imported(family):
            rules.append({"if": _has_kind({"enum": sorted(tables)}), "else": imported})
        needs_kind = not self.is_part and family.otherwise is None
        return {
            **({"required": ["kind"]} if needs_kind else {}),
            "properties": {"kind": _kind(list(tables), may_import=family.imported is not None)},
            **({"allOf": rules} if rules else {}),
        }

    def _tables(self, family: OneOf) -> dict[str, Schema]:
        """The table of each kind."""
        tables: dict[str, Schema] = {}
        for kind, cls in family.kinds.items():
            keys: Schema = {"kind": True}
            keys |= {key: self._brief(cls, key, schema) for key, schema in self.keys(cls).items()}
            tables[kind] = {"description": " ".join(paragraphs(cls))}
            tables[kind] |= self._closed(keys, _required(fields_of(cls)), kind, can_unset=self.is_part)
        if family.base is Layer:
            tables["use"] = {
                "description": "The layers of a stack, [layers.NAME]; other keys are its parameters.",
                "properties": {"stack": {"type": "string"}},
                "required": ["stack"],
            }
        return tables

    def _brief(self, cls: type, key: str, schema: Schema) -> Schema:
        """The schema of a key that no editor looks at: a family by its name."""
        families = [note for note in split(arms_of(fields_of(cls)[key][0])[0])[1] if isinstance(note, OneOf)]
        return {"$ref": f"#/$defs/{self._name(families[0])}"} if families else schema

    def _imported(self, family: OneOf) -> Schema:
        """What is demanded of a table whose kind is an import path: our own keys; others are arguments."""
        if family.imported is None:
            return {}
        own, required = self._own(family), _required(own_keys(family.imported))
        made = {"properties": own} if own else {}
        return made | ({"required": required} if required and not self.is_part else {})

    def _own(self, family: OneOf) -> Schema:
        if family.imported is None:
            return {}
        own = own_keys(family.imported)
        made = {key: value for key, value in self.keys(family.imported).items() if key in own}
        if family.base is Source:
            made["examples"] = self.value(Reading)
        return made

    def _part_of_model(self) -> Schema:
        """A model without a kind in a file that extends others, where its kind may be said."""
        is_of_layers = {"type": "array", "contains": {"type": "object"}}
        return {"properties": {"layers": {"if": is_of_layers, "then": self.value(Layers)}}}

    def _hints(self, family: OneOf) -> Schema:
        """The keys that an editor offers: those of every kind, as it does not look at `kind`."""
        found: dict[str, dict[str, Schema]] = {}
        sorts = family.kinds | ({"": family.otherwise} if family.otherwise else {})
        for kind, cls in sorts.items():
            for key, schema in self.keys(cls).items():
                found.setdefault(key, {})[kind] = schema
        for key, schema in self._own(family).items():
            found.setdefault(key, {})["an import path"] = schema
        if family.base is Layer:
            found["stack"] = {"use": {"type": "string", "description": "the name of a table [layers.NAME]"}}
        return {"kind": _kind_hint(family)} | {key: hinted(merged(same)) for key, same in found.items()}

    def _closed(
        self, keys: Schema, required: list[str], who: str = "this table", *, can_unset: bool = False
    ) -> Schema:
        """A table with these keys and no others; each other one is complained of where it stands."""
        wrong: Schema = {"not": {"title": f"unknown key; {who} has {', '.join(keys)}"}}
        others = f"^(?!(?:{'|'.join(map(re.escape, keys))})$)"
        return {
            "properties": keys,
            **({"required": required} if required and not self.is_part else {}),
            "patternProperties": {others: {"if": UNSET, "else": wrong} if can_unset else wrong},
            "additionalProperties": False,
        }


def _required(fields: Mapping[str, tuple[Any, bool]]) -> list[str]:
    return [key for key, (_, is_required) in fields.items() if is_required]


def _home(family: OneOf, kind: str) -> type:
    """The family that a kind itself belongs to; it may lie inside another one."""
    homes = (base for base, kinds in KINDS.items() if kind in kinds and issubclass(base, family.base))
    return next(homes, family.base)


def _has_kind(schema: Schema) -> Schema:
    return {"properties": {"kind": schema}, "required": ["kind"]}


def _kind(kinds: list[str], *, may_import: bool) -> Schema:
    """What may stand under `kind`."""
    free = f"{IMPORT_PATH}|{REFERENCE}" if may_import else REFERENCE
    is_free: Schema = {"type": "string", "pattern": free}
    return {"if": is_free, "else": {"enum": sorted(kinds)}} if kinds else is_free


def _kind_hint(family: OneOf) -> Schema:
    """The kinds that an editor offers, with what each is."""
    about = {kind: " ".join(paragraphs(cls)) for kind, cls in family.kinds.items()}
    if family.base is Layer:
        about["use"] = "The layers of a stack, [layers.NAME]."
    text = ["which kind"] * bool(about) + ["an import path, package.module:Name"] * bool(family.imported)
    shown: Schema = {"description": ", or ".join(text), "type": "string"}
    if about:
        shown |= {"enum": list(about), "x-taplo": {"docs": {"enumValues": list(about.values())}}}
    return hinted(shown)
