"""From a file and the command line to one table: read, override, resolve references."""

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli

from dtrain.errors import RecipeError
from dtrain.recipe.decode import dotted, nearest

Place = tuple[int | str, ...]
REFERENCE = re.compile(r"\$\{([^{}]*)\}")


def read(path: Path) -> dict[str, Any]:
    """The table of a TOML file. Raises RecipeError if there is none or it is not TOML."""
    try:
        return tomli.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError("", f"{path}: there is no such recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError("", f"{path}: cannot be read: {error}") from None
    except (tomli.TOMLDecodeError, RecursionError) as error:
        raise RecipeError("", f"{path}: not TOML: {error}") from None


def override(table: dict[str, Any], overrides: Sequence[str]) -> list[Place]:
    """Set the leaves that the command line names, `a.b.c=value`, and return their places.

    The value is TOML; what is not is taken as a string. Raises RecipeError for a malformed one.
    """
    places = []
    for text in sorted(overrides, key=lambda text: not text.startswith("optimizers.*.")):
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise RecipeError("", f"{text!r} is not an override; write key=value, as in train.steps=100")
        place = tuple(int(p) if p.isdigit() else p for p in re.split(r"[.\[]", key.strip().replace("]", "")))
        _copy_star(table, place)
        _set(table, place, _value(value))
        places.append(place)
    return places


def _copy_star(table: dict[str, Any], place: Place) -> None:
    """Where "*" serves a model of whose optimizer one key is set, give it one of its own to set it in."""
    match place, table:
        case ("optimizers", str(name), _, *_), {"optimizers": {"*": star, **own}, "models": {**models}}:
            if name in models and name not in own:
                table["optimizers"][name] = copy.deepcopy(star)


def _value(text: str) -> Any:
    try:
        return tomli.loads(f"value = {text}")["value"]
    except tomli.TOMLDecodeError:
        return text


def _set(table: dict[str, Any], place: Place, value: Any) -> None:
    node: Any = table
    for depth, part in enumerate(place):
        here = dotted(place[: depth + 1])
        key: Any = part
        if isinstance(node, list):
            if not isinstance(part, int) or part >= len(node):
                raise RecipeError(here, f"there is no such item; the array has {len(node)}, counted from 0")
        elif isinstance(node, dict):
            key = str(part)
            node.setdefault(key, {})
        else:
            raise RecipeError(dotted(place[:depth]), f"{node!r} is no table, so {here} cannot be set")
        if depth == len(place) - 1:
            node[key] = value
        node = node[key]


def resolve(table: dict[str, Any]) -> tuple[dict[str, Any], list[RecipeError]]:
    """Replace every `${a.b.c}` by the value that stands there: typed, or as text inside a string."""
    errors: list[RecipeError] = []

    def visit(value: Any, place: Place, inside: tuple[str, ...]) -> Any:
        if isinstance(value, dict):
            return {key: visit(item, (*place, key), inside) for key, item in value.items()}
        if isinstance(value, list):
            return [visit(item, (*place, number), inside) for number, item in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        try:
            if whole := REFERENCE.fullmatch(value):
                return follow(whole[1], place, inside)
            return REFERENCE.sub(
                lambda found: as_text(follow(found[1], place, inside), found[1], place), value
            )
        except RecipeError as error:
            errors.append(error)
            return value

    def follow(name: str, place: Place, inside: tuple[str, ...]) -> Any:
        if name in inside:
            raise RecipeError(dotted(place), f"references go in a circle: {' -> '.join([*inside, name])}")
        node: Any = table
        for part in name.split("."):
            if not isinstance(node, dict) or part not in node:
                near = nearest(part, node) if isinstance(node, dict) else ""
                raise RecipeError(dotted(place), f"${{{name}}} refers to nothing{near}")
            node = node[part]
        before = len(errors)
        found = visit(copy.deepcopy(node), place, (*inside, name))
        if len(errors) > before:
            raise errors.pop()
        return found

    return visit(table, (), ()), errors


def as_text(value: Any, name: str, place: Place) -> str:
    """A referred value inside a string."""
    if isinstance(value, dict | list):
        raise RecipeError(
            dotted(place), f"${{{name}}} is a table or an array and cannot stand inside a string"
        )
    return str(value).lower() if isinstance(value, bool) else str(value)
