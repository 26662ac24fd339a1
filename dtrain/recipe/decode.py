"""From a table to a value: strict, with every mistake named in the recipe's own words."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dtrain.errors import RecipeError
from dtrain.recipe.keys import known_keys
from dtrain.spec.table import adapter

WANTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a string",
    "bool_type": "true or false",
    "tuple_type": "an array",
    "dataclass_type": "a table",
    "table_type": "a table",
    "dict_type": "a table",
    "mapping_type": "a table",
    "finite_number": "a finite number",
    "path_type": "a path, as a string",
    "is_instance_of": "a path, as a string",
}
BOUNDS = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}
SIGNS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def decode(cls: type, table: Mapping[str, Any]) -> tuple[Any, list[RecipeError]]:
    """The value of a table, or None and every mistake that stands in it."""
    try:
        return adapter(cls).validate_python(table), []
    except ValidationError as error:
        return None, list(_explain(cls, error.errors(include_url=False), table))


def dotted(place: Iterable[int | str]) -> str:
    """`("models", "generator", "layers", 3)` as `models.generator.layers[3]`."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


def nearest(word: object, known: Iterable[str]) -> str:
    """`; did you mean "x"?` where a known word is close, else nothing."""
    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
    return f'; did you mean "{close[0]}"?' if close else ""


def _explain(cls: type, errors: list[ErrorDetails], table: Mapping[str, Any]) -> Iterable[RecipeError]:
    """One RecipeError for each place, with the alternatives of a union said together."""
    places: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    for error in errors:
        places.setdefault(_place(error["loc"], table), []).append(error)
    for place, found in places.items():
        yield RecipeError(dotted(place), _message(cls, found, place, table))


def _place(location: tuple[int | str, ...], table: Any) -> tuple[int | str, ...]:
    """The location without the names that pydantic adds for the members of a union."""
    place: list[int | str] = []
    for number, part in enumerate(location):
        is_key = isinstance(table, Mapping) and (part in table or number == len(location) - 1)
        is_item = isinstance(table, list | tuple) and isinstance(part, int) and part < len(table)
        if is_key or is_item:
            place.append(part)
            table = table[part] if is_item or part in table else None
    return tuple(place)


def _at(place: tuple[int | str, ...], table: Any) -> Any:
    for part in place:
        table = table[part]
    return table


def _message(cls: type, errors: list[ErrorDetails], place: tuple[int | str, ...], table: Any) -> str:
    error, found = errors[0], errors[0]["input"]
    context = error.get("ctx") or {}
    match error["type"]:
        case "missing" if isinstance(error["loc"][-1], int):
            return f"found {show(_at(place, table))}; {len(errors)} more would do"
        case "missing" | "missing_keyword_only_argument" | "missing_argument":
            return "required, but missing"
        case "unexpected_keyword_argument" | "extra_forbidden":
            return "unknown key" + nearest(place[-1], known_keys(cls, place[:-1], table))
        case "literal_error":
            known = [word.strip("' ") for word in context["expected"].replace(" or ", ",").split(",")]
            return f"found {show(found)}; one of {', '.join(known)} would do{nearest(found, known)}"
        case "unknown_kind":
            known = context["known"]
            return f"unknown kind {show(found)}; one of {', '.join(known)} would do{nearest(found, known)}"
        case "missing_kind" | "model_kind":
            return error["msg"]
        case "too_long" | "too_short":
            bound = (
                f"at most {context['max_length']}"
                if "max_length" in context
                else f"at least {context['min_length']}"
            )
            return f"found {show(found)}; {bound} items would do"
        case "value_error":
            return str(context["error"])
        case "string_pattern_mismatch":
            return f"found {show(found)}; letters, digits, dots, dashes and underscores would do"
        case bound if bound in BOUNDS:
            sign = BOUNDS[bound]
            return f"found {show(found)}; a number {SIGNS[sign]} {context[sign]} would do"
    if all(one["type"] in WANTED for one in errors):
        wanted = " or ".join(dict.fromkeys(WANTED[one["type"]] for one in errors))
        return f"found {show(found)}; {wanted} would do"
    return f"found {show(found)}: {error['msg'].lower()}"


def show(value: object) -> str:
    """A value as a recipe writes it, cut where it is long."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = (
        f'"{value}"'
        if isinstance(value, str)
        else str(dict(value))
        if isinstance(value, Mapping)
        else str(value)
    )
    return text if len(text) <= 60 else text[:57] + "..."
