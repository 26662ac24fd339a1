"""What may stand for single values of a recipe, in the words of JSON Schema."""

import math
import typing
from collections.abc import Mapping
from typing import Any

from dtrain.recipe.keys import arms_of
from dtrain.spec.decode import ARRAYS, WANTED, split
from dtrain.spec.table import Matching, Within

Schema = dict[str, Any]
REFERENCE = r"\$\{[^{}]+\}"
TYPES = {"true or false": "boolean", "a whole number": "integer", "a number": "number"}  # all else: strings
BOUNDS = {
    "above": "exclusiveMinimum",
    "at_least": "minimum",
    "at_most": "maximum",
    "below": "exclusiveMaximum",
}


def referable(*types: str) -> Schema:
    """A value of some type, or a string with a reference in it."""
    return {"type": [*types, "string"], "pattern": REFERENCE}


def hinted(schema: Schema) -> Schema:
    """What an editor shows and offers, and complains of nothing."""
    return {"anyOf": [True, schema]}


def merged(same: Mapping[str, Schema]) -> Schema:
    """One schema for a key that several kinds have, with what it means in each."""
    schemas = list(same.values())
    if all(schema == schemas[0] for schema in schemas):
        return schemas[0]
    hints = [_hint(schema) for schema in schemas]
    shared = {key: value for key, value in hints[0].items() if all(hint.get(key) == value for hint in hints)}
    texts: dict[str, list[str]] = {}
    for kind, hint in zip(same, hints, strict=True):
        if "description" in hint:
            texts.setdefault(hint["description"], []).append(kind)
    text = "\n\n".join(f"{', '.join(kinds)}: {text}" for text, kinds in texts.items())
    for several in ("enum", "type"):
        if values := [value for hint in hints for value in hint.get(several, [])]:
            return shared | {"description": text, several: list(dict.fromkeys(values))}
    return shared | {"description": text}


def _hint(schema: Schema) -> Schema:
    """What an editor shows of a schema: of a choice it stands aside."""
    return dict(schema["anyOf"][1]) if "anyOf" in schema else schema


def single(target: Any, about: Schema) -> Schema:
    """A single value, or one for each axis."""
    checked = _plain(target)
    types = checked.get("type", [_type_of(choice) for choice in checked.get("enum", [])])
    if checked == {"type": ["string"]}:
        return about | checked
    is_choice = "enum" in checked
    shown = hinted(about | checked) if is_choice else about
    return {
        **shown,
        "type": list(dict.fromkeys([*("number" if t == "integer" else t for t in types), "string"])),
        "if": {"$ref": "#/$defs/reference"},
        "else": checked,
    }


def _plain(target: Any) -> Schema:
    """What may stand in place of a reference; the arms of a union have different types."""
    made: Schema = {}
    for arm in arms_of(target):
        inner, notes = split(arm)
        if typing.get_origin(inner) is typing.Literal:
            return {"enum": list(typing.get_args(inner))}
        if typing.get_origin(inner) in ARRAYS:
            inside = typing.get_args(inner)
            sort: Schema = {"type": ["array"], "items": single(inside[0], {})}
            if inside[-1] is not ...:
                sort |= {"minItems": len(inside), "maxItems": len(inside)}
        else:
            sort = {"type": [TYPES.get(WANTED[inner][1], "string")]}
        for note in notes:
            sort |= _demanded(note)
        made = made | sort | {"type": [*made.get("type", []), *sort["type"]]}
    return made


def _demanded(note: Any) -> Schema:
    """What an annotation demands, in the words of JSON Schema."""
    if isinstance(note, Within):
        given = {name: getattr(note, name) for name in BOUNDS}
        return {BOUNDS[name]: value for name, value in given.items() if math.isfinite(value)}
    return {"pattern": f"^(?:{note.pattern})$"} if isinstance(note, Matching) else {}


def _type_of(value: Any) -> str:
    return "integer" if isinstance(value, int) else "string"
