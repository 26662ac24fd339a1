"""From TOML's values to a recipe's tables: strict, and with every mistake at once, each at its place."""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from dtrain.errors import RecipeError, RecipeErrors
from dtrain.spec.table import (
    AtLeastOne,
    ByOwner,
    Checked,
    Matching,
    OneOf,
    Open,
    Within,
    Wrong,
    freeze,
    key_of,
)
from dtrain.spec.words import Place, dotted, either, nearest, placed, show

BROKEN: Any = object()  # in place of a value with a mistake in it
ARRAYS = (tuple, list, Sequence)
MANY = 20  # mistakes, after which it takes too long to look what was meant
TOO_MANY = 200  # mistakes, after which the rest is not looked for
LARGEST = 2**63  # what TOML promises of whole numbers
LONGEST_PATH = 4_096  # characters, as Linux has it
WANTED: dict[Any, tuple[type | tuple[type, ...], str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    str: (str, "a string"),
    Path: (str, "a path, as a string"),
}


class UnknownKey(RecipeError):
    """A table has no such key."""


class MissingKey(RecipeError):
    """A table lacks a key that it needs."""


def decode(target: Any, value: Any, place: Place = ()) -> tuple[Any, list[RecipeError]]:
    """The value of a type, or BROKEN and every mistake in it."""
    decoder = Decoder()
    return decoder.read(target, value, place), decoder.mistakes


def decoded(target: Any, value: Any, place: Place = (), source: str = "") -> Any:
    """The value of a type. Raises RecipeErrors with every mistake in it."""
    found, mistakes = decode(target, value, place)
    if mistakes:
        raise RecipeErrors(mistakes, source)
    return found


def fields_of(cls: type) -> Mapping[str, tuple[Any, bool]]:
    """The keys of a table: type, and whether it must be given."""
    return _fields_of(cls)


@cache
def _fields_of(cls: Any) -> Mapping[str, tuple[Any, bool]]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {
        key_of(field.name): (
            _type_in(cls, hints[field.name]),
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
        )
        for field in dataclasses.fields(cls)
        if field.init
    }


def _type_in(cls: type, hint: Any) -> Any:
    by_owner = [note.function for note in split(hint)[1] if isinstance(note, ByOwner)]
    return by_owner[0](cls) if by_owner else hint


def own_keys(imported: type) -> dict[str, tuple[Any, bool]]:
    """The keys that are ours in a table whose kind is imported; all others are arguments."""
    return {name: field for name, field in fields_of(imported).items() if name not in ("path", "arguments")}


def split(target: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type and what annotates it."""
    if typing.get_origin(target) is Annotated:
        inner, *notes = typing.get_args(target)
        return inner, tuple(notes)
    return target, ()


class Decoder:
    """Reads values by their types and notes every mistake on the way."""

    def __init__(self) -> None:
        self.mistakes: list[RecipeError] = []

    def read(self, target: Any, value: Any, place: Place) -> Any:
        """The value of a type, or BROKEN."""
        target, notes = split(target)
        for note in notes:
            if isinstance(note, OneOf):
                return self._kind(note, value, place)
        origin = typing.get_origin(target)
        if origin in (typing.Union, types.UnionType):
            found = self._union(target, value, place)
        elif origin is Literal:
            found = self._choice(target, value, place)
        elif origin in ARRAYS or target in ARRAYS:
            found = self._array(target, value, place)
        elif origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
            found = self._mapping(typing.get_args(target)[-1], value, place)
        elif dataclasses.is_dataclass(target) and isinstance(target, type):
            found = self.table(target, value, place)
        else:
            found = self._scalar(target, value, place)
        for note in notes:
            if found is not BROKEN:
                found = self._check(note, found, value, place)
        return found

    def table(self, cls: type, value: Any, place: Place, family: OneOf | None = None) -> Any:
        """A frozen dataclass from a table of its fields."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            return self._refuse(place, f"found {show(value)}; a table would do")
        if issubclass(cls, Open):
            return self._open(cls, {}, value, place)
        fields = fields_of(cls)
        unknown = [key for key in value if key not in fields]
        missing = [key for key, (_, is_required) in fields.items() if is_required and key not in value]
        before = len(self.mistakes)
        self.name(unknown, missing, [*(["kind"] if family else []), *fields], place)
        if family is not None:
            self._say_whose(family, cls, before)
        found = {key: self.read(fields[key][0], value[key], (*place, key)) for key in value if key in fields}
        return BROKEN if unknown or missing else self._make(cls, found, place)

    def name(
        self, unknown: Sequence[str], missing: Sequence[str], known: Sequence[str], place: Place
    ) -> None:
        """Note unknown and missing keys; a misspelt one is one mistake, not two."""
        suggested = set()
        for key in unknown:
            word = self._nearest(key, known, first=missing)
            suggested.add(word)
            self.mistakes.append(
                UnknownKey(dotted((*place, key)), "unknown key", is_key=True, suggestion=word)
            )
        for key in missing:
            if key not in suggested:
                self.mistakes.append(MissingKey(dotted((*place, key)), "required, but missing"))

    def _say_whose(self, family: OneOf, cls: type, before: int) -> None:
        """Say of a kind's unknown keys, noted last, which other kinds of its family have them."""
        for number, mistake in enumerate(self.mistakes[before:], before):
            key = placed(mistake.key)[-1]
            if not isinstance(mistake, UnknownKey):
                continue
            if others := [other for other, kind in family.kinds.items() if key in fields_of(kind)]:
                said = f"{getattr(cls, 'kind', '')} has no such key; {either(others)} has"
                self.mistakes[number] = UnknownKey(mistake.key, said, is_key=True)

    def _make(self, cls: type, found: Mapping[str, Any], place: Place) -> Any:
        if any(value is BROKEN for value in found.values()):
            return BROKEN
        try:
            fields = {key_of(field.name): field.name for field in dataclasses.fields(cls)}
            return cls(**{fields[key]: item for key, item in found.items()})
        except Wrong as error:
            where = (*place, *placed(error.at))
            return self._refuse(where, str(error), is_key=error.is_key, suggestion=error.suggestion)
        except ValueError as error:
            return self._refuse(place, str(error))

    def _kind(self, family: OneOf, value: Any, place: Place) -> Any:
        """One of the kinds of a family, or what an import path makes."""
        if isinstance(value, (family.base, *([family.imported] if family.imported else []))):
            return value
        if not isinstance(value, Mapping):
            what = "a table" if family.otherwise else "a table with a `kind`"
            return self._refuse(place, f"found {show(value)}; {what} would do")
        if "kind" not in value and family.otherwise is not None:
            return self.table(family.otherwise, value, place)
        if "kind" not in value:
            return self._without_kind(family, value, place)
        name, rest = value["kind"], {key: item for key, item in value.items() if key != "kind"}
        if not isinstance(name, str):
            return self._refuse((*place, "kind"), f"found {show(name)}; {_kinds_in_words(family)}")
        if ":" in name and family.imported is not None:
            return self._open(family.imported, {"path": name}, rest, place)
        if name in family.kinds:
            return self.table(family.kinds[name], rest, place, family)
        if reason := family.refused.get(name.lower()):
            return self._refuse((*place, "kind"), f"{name} {reason}; {_kinds_in_words(family)}")
        near = self._nearest(name, family.kinds)
        module, dot, attribute = name.rpartition(".")
        if near is None and dot and family.imported and not attribute.startswith("py"):
            near = f"{module}:{attribute}"
        said = f"unknown kind {show(name)}; {_kinds_in_words(family)}"
        if near is None and family.otherwise is not None and rest.keys() & fields_of(family.otherwise).keys():
            self.mistakes.append(UnknownKey(dotted((*place, "kind")), said, is_key=True))
            self.table(family.otherwise, rest, place)
            return BROKEN
        return self._refuse((*place, "kind"), said, suggestion=near)

    def _without_kind(self, family: OneOf, value: Mapping[str, Any], place: Place) -> Any:
        """A table that lacks its `kind`: say so, or which key was meant to be it, and read on."""
        for key, item in value.items():
            if nearest(key, ["kind"]) and isinstance(item, str) and (item in family.kinds or ":" in item):
                self.mistakes.append(
                    UnknownKey(dotted((*place, key)), "unknown key", is_key=True, suggestion="kind")
                )
                self._kind(family, {**{k: v for k, v in value.items() if k != key}, "kind": item}, place)
                return BROKEN
        self.mistakes.append(MissingKey(dotted((*place, "kind")), f"missing; {_kinds_in_words(family)}"))
        return BROKEN

    def _open(self, cls: type, known: Mapping[str, Any], rest: Mapping[str, Any], place: Place) -> Any:
        """A table some of whose keys are ours; the others are arguments. Of some the value is `known`."""
        own = own_keys(cls)
        missing = [key for key, (_, is_required) in own.items() if is_required and key not in rest]
        misspelt = [key for key in rest if key not in own and nearest(key, missing)]
        self.name(misspelt, missing, [*own], place)
        found = {key: self.read(own[key][0], rest[key], (*place, key)) for key in rest if key in own}
        if missing:
            return BROKEN
        arguments = freeze({key: item for key, item in rest.items() if key not in own})
        return self._make(cls, {**found, **known, "arguments": arguments}, place)

    def _union(self, target: Any, value: Any, place: Place) -> Any:
        arms = [arm for arm in typing.get_args(target) if arm is not type(None)]
        if value == "" and len(arms) == 1 and split(arms[0])[0] is Path:
            return self._refuse(place, 'found ""; a path would do, or no such key ("${unset}" removes one)')
        for arm in arms:
            if _takes(arm, value):
                return self.read(arm, value, place)
        if len(arms) == 1:
            return self.read(arms[0], value, place)
        return self._refuse(place, f"found {show(value)}; {either(_wanted(arm) for arm in arms)} would do")

    def _choice(self, target: Any, value: Any, place: Place) -> Any:
        choices = typing.get_args(target)
        if any(value == choice and type(value) is type(choice) for choice in choices):
            return value
        texts = [choice for choice in choices if isinstance(choice, str)]
        near = self._nearest(value, texts) if isinstance(value, str) else None
        if all(isinstance(choice, str) for choice in choices):
            said = f"one of {', '.join(choices)} would do"
        else:
            said = f"{either(show(choice) for choice in choices)} would do"
        return self._refuse(place, f"found {show(value)}; {said}", suggestion=near)

    def _array(self, target: Any, value: Any, place: Place) -> Any:
        if not isinstance(value, list | tuple):
            return self._refuse(place, f"found {show(value)}; an array would do")
        types_inside = typing.get_args(target) or (Any, ...)
        if (len(types_inside) == 2 and types_inside[1] is ...) or typing.get_origin(target) is not tuple:
            types_inside = (types_inside[0],) * len(value)
        if len(types_inside) != len(value):
            wanted = f"{len(types_inside)} item{'s' * (len(types_inside) > 1)} would do"
            return self._refuse(place, f"found {show(value)}; {wanted}")
        items = [
            self.read(inside, item, (*place, number))
            for number, (inside, item) in enumerate(zip(types_inside, value, strict=True))
        ]
        return BROKEN if any(item is BROKEN for item in items) else tuple(items)

    def _mapping(self, inside: Any, value: Any, place: Place) -> Any:
        if not isinstance(value, Mapping):
            return self._refuse(place, f"found {show(value)}; a table would do")
        found = {key: self.read(inside, item, (*place, key)) for key, item in value.items()}
        return BROKEN if any(item is BROKEN for item in found.values()) else types.MappingProxyType(found)

    def _scalar(self, target: Any, value: Any, place: Place) -> Any:
        if target is Any:
            return freeze(value)
        if target not in WANTED:  # a type of a user's own table that TOML does not have
            is_fit = not isinstance(target, type) or isinstance(value, target)
            name = getattr(target, "__name__", target)
            return value if is_fit else self._refuse(place, f"found {show(value)}; a {name} would do")
        if isinstance(value, target):
            is_fit = target is bool or not isinstance(value, bool)
        else:
            is_fit = _takes(target, value)
        if not is_fit:
            return self._refuse(place, f"found {show(value)}; {_wanted(target)} would do")
        if value == "" and target is Path:
            return self._refuse(place, 'found ""; a path would do')
        if isinstance(value, float) and not math.isfinite(value):
            return self._refuse(place, f"found {show(value)}; a finite number would do")
        if isinstance(value, int) and abs(value) >= LARGEST:
            return self._refuse(place, "found a number of more than 63 bits; a smaller one would do")
        if target is Path and (len(value) > LONGEST_PATH or "\0" in value):
            return self._refuse(place, f"found {show(value)}; no file can have this path")
        return target(value)

    def _check(self, note: Any, found: Any, value: Any, place: Place) -> Any:
        """The value if it is what an annotation asks for."""
        match note:
            case Within() if isinstance(found, int | float):
                if problem := note.problem(found):
                    return self._refuse(place, f"found {show(value)}; {problem}")
            case Matching():
                if not re.fullmatch(note.pattern, found):
                    return self._refuse(place, f"found {show(value)}; {note.words} would do")
            case AtLeastOne() if not found:
                return self._refuse(place, f"found {show(value)}; at least one item would do")
            case Checked():
                try:
                    return note.function(found)
                except ValueError as error:
                    return self._refuse(place, str(error))
        return found

    def _nearest(self, word: str, known: Iterable[str], first: Iterable[str] = ()) -> str | None:
        """The word that was meant, unless there are so many mistakes that it would take too long."""
        return nearest(word, known, first) if len(self.mistakes) < MANY else None

    def _refuse(
        self, place: Place, message: str, *, is_key: bool = False, suggestion: str | None = None
    ) -> Any:
        self.mistakes.append(RecipeError(dotted(place), message, is_key=is_key, suggestion=suggestion))
        return BROKEN


def _kinds_in_words(family: OneOf) -> str:
    if not family.kinds:
        return "an import path, package.module:Name, would do"
    path = ", or an import path, package.module:Name" if family.imported else ""
    return f"one of {', '.join(sorted(family.kinds))} would do{path}"


def _takes(target: Any, value: Any) -> bool:
    """Whether a value is of the sort that a type is made from, whatever is in it."""
    target, notes = split(target)
    origin = typing.get_origin(target)
    if target is Any:
        return True
    if any(isinstance(note, OneOf) for note in notes):
        return isinstance(value, Mapping)
    if origin is Literal:
        return value in typing.get_args(target)
    if origin in ARRAYS or target in ARRAYS:
        inside = next(iter(typing.get_args(target)), Any)
        return isinstance(value, list | tuple) and (not value or any(_takes(inside, item) for item in value))
    if origin is not None or dataclasses.is_dataclass(target):
        return isinstance(value, Mapping)
    sorts, _ = WANTED.get(target, (target, ""))
    return isinstance(value, sorts) and (target is bool or not isinstance(value, bool))


def _wanted(target: Any) -> str:
    target, _ = split(target)
    if target in WANTED:
        return WANTED[target][1]
    if typing.get_origin(target) is Literal:
        return either(show(choice) for choice in typing.get_args(target))
    return "an array" if typing.get_origin(target) in ARRAYS else "a table"
