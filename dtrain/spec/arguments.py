"""The arguments of what an import path names: checked against its signature, and handed over."""

import inspect
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from dtrain.errors import RecipeError
from dtrain.spec.decode import MissingKey, UnknownKey
from dtrain.spec.imports import WANTED, Role, derives, find
from dtrain.spec.trust import EVERYTHING, Trust, is_import_path
from dtrain.spec.words import Place, dotted, nearest

Parameters = Mapping[str, inspect.Parameter]
BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def call(
    path: str,
    arguments: Mapping[str, Any],
    role: Role,
    trust: Trust = EVERYTHING,
    *given: Any,
    **supplied: Any,
) -> Any:
    """Call what a path names with a recipe's arguments, behind those that dtrain supplies.

    A table among the arguments whose `kind` is an import path is called too, and what it makes takes the
    table's place; schedules inside a schedule get what was supplied. A string that is an import path stands
    for what it names where the signature asks for a callable. Raises ImportPathError where a path cannot be
    had, and whatever the callable raises.
    """
    return call_found(find(path, role, trust), arguments, role, trust, *given, **supplied)


def call_found(
    found: Any, arguments: Mapping[str, Any], role: Role, trust: Trust, *given: Any, **supplied: Any
) -> Any:
    """The same for what was found already."""
    return found(*given, **supplied, **prepared(found, arguments, role, trust, **supplied))


def prepared(
    found: Any, arguments: Mapping[str, Any], role: Role, trust: Trust = EVERYTHING, **supplied: Any
) -> dict[str, Any]:
    """A recipe's arguments as a callable takes them, with all that is named among them."""

    def make(value: Any, parameter: inspect.Parameter | None) -> Any:
        if isinstance(value, Mapping):
            path = nested_path(value)
            if path is None:
                return {key: make(item, None) for key, item in value.items()}
            inner = find(path, "part", trust)
            inside = prepared(inner, without_kind(value), role, trust, **supplied)
            return inner(**taken(inner, role, supplied), **inside)
        if isinstance(value, list | tuple):
            return tuple(make(item, parameter) for item in value)
        if is_callables_path(value, parameter):
            return find(value, "function", trust)
        return value

    parameters = parameters_of(found) or {}
    return {name: make(value, parameters.get(name)) for name, value in arguments.items()}


def taken(found: Any, role: Role, supplied: Mapping[str, Any]) -> dict[str, Any]:
    """Of what dtrain supplies to the outermost, what one inside it of the same role takes."""
    if not any(derives(found, base) for base in WANTED[role].bases):
        return {}
    parameters = parameters_of(found) or {}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {name: value for name, value in supplied.items() if takes_any or name in parameters}


def nested_path(value: Mapping[str, Any]) -> str | None:
    """The import path of a table among arguments; None of one that is just a table."""
    kind = value.get("kind")
    return kind if isinstance(kind, str) and is_import_path(kind) else None


def without_kind(table: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments beside the key `kind`."""
    return {key: item for key, item in table.items() if key != "kind"}


def nested(value: Any, place: Place) -> Iterator[tuple[Place, str, Mapping[str, Any]]]:
    """Every table among arguments that an import path makes something of: place, path, arguments."""
    if isinstance(value, Mapping):
        path = nested_path(value)
        if path is not None:
            yield place, path, without_kind(value)
        for key, item in value.items():
            yield from nested(item, (*place, key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from nested(item, (*place, number))


def callables(found: Any, arguments: Mapping[str, Any], place: Place) -> Iterator[tuple[Place, str]]:
    """The strings among arguments that stand for functions, and their places."""
    parameters = parameters_of(found) or {}

    def inside(value: Any, parameter: inspect.Parameter | None, where: Place) -> Iterator[tuple[Place, str]]:
        if isinstance(value, list | tuple):
            for number, item in enumerate(value):
                yield from inside(item, parameter, (*where, number))
        elif is_callables_path(value, parameter):
            yield where, value

    for name, value in arguments.items():
        yield from inside(value, parameters.get(name), (*place, name))


def is_callables_path(value: Any, parameter: inspect.Parameter | None) -> bool:
    """Whether a value is an import path where the signature asks for a callable."""
    if parameter is None or not isinstance(value, str) or not is_import_path(value):
        return False
    return "Callable" in str(parameter.annotation)


def parameters_of(found: Any) -> Parameters | None:
    """The parameters of a class or function by name; None where Python cannot tell."""
    try:
        return inspect.signature(found).parameters
    except (TypeError, ValueError):
        return None


def argument_problems(
    found: Any,
    arguments: Collection[str],
    supplied: Collection[str] = (),
    *,
    positions: int = 0,
    place: Place = (),
    elsewhere: Mapping[str, Place] = MappingProxyType({}),
    known: Collection[str] = (),
) -> list[RecipeError]:
    """What is wrong with the names of arguments, by the signature of what they are for, which is not called.

    dtrain gives it so many `positions`, and those `supplied` by name. The arguments stand in the table at
    `place`, some `elsewhere`; `known` are keys of ours in that table, which may have been meant. Of what has
    no signature nothing is said.
    """
    signature = parameters_of(found)
    if signature is None:
        return []
    name, parameters = getattr(found, "__name__", str(found)), list(signature.values())
    places = {**{key: (*place, key) for key in arguments}, **elsewhere}
    by_position = [p for p in parameters if p.kind in BY_POSITION]
    ours = {p.name for p in by_position[:positions]} | set(supplied)
    free = [p for p in parameters if p.name not in ours]
    errors = [
        RecipeError(dotted((*place, "kind")), said) for said in _unfit(name, parameters, positions, supplied)
    ]
    for key in places:
        if key in ours:
            said = f"dtrain gives {name} this argument itself"
            errors.append(RecipeError(dotted(places[key]), said, is_key=True))
    given = {key: where for key, where in places.items() if key not in ours}
    return [*errors, *_unknown_and_missing(name, free, given, place, known)]


def _unfit(
    name: str, parameters: list[inspect.Parameter], positions: int, supplied: Collection[str]
) -> Iterator[str]:
    """Why a callable cannot be called as dtrain calls it, whatever the recipe says."""
    by_position = [p for p in parameters if p.kind in BY_POSITION]
    if len(by_position) < positions and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        few = f"{len(by_position)} argument{'s' * (len(by_position) != 1)}"
        yield f"{name} takes {few} by position, and dtrain gives it {positions}"
    names = {p.name for p in parameters if p.kind in BY_NAME}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for lacking in (key for key in supplied if key not in names):
            yield f"{name} takes no {lacking}, which dtrain gives it"
    for p in by_position[positions:]:
        if p.kind is p.POSITIONAL_ONLY and p.default is p.empty:
            said = f"{name} takes {p.name} by position alone, which a recipe cannot give"
            yield f"{said}; a function around it would do"


def _unknown_and_missing(
    name: str,
    free: list[inspect.Parameter],
    given: Mapping[str, Place],
    place: Place,
    known: Collection[str],
) -> Iterator[RecipeError]:
    names = {p.name: p for p in free if p.kind in BY_NAME}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in free)
    missing = [key for key, p in names.items() if p.default is p.empty and key not in given]
    suggested = set()
    for key, where in given.items():
        if key not in names and not takes_any:
            word = nearest(key, [*names, *known], first=missing)
            suggested.add(word)
            said = f"{name} takes no such argument"
            yield UnknownKey(dotted(where), said, is_key=True, suggestion=word)
    for key in missing:
        if key not in suggested:
            yield MissingKey(dotted((*place, key)), f"required by {name}, but missing")
