"""What differs in meaning between two recipes: defaults resolved, references and stacks replaced."""

import json
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from typing import Any, NamedTuple

from dtrain.recipe.values import Recipe
from dtrain.recipe.write import encode
from dtrain.spec.words import Place, dotted

NOTHING: Any = object()  # in place of a value that one of the two lacks


class Difference(NamedTuple):
    """One value that is not the same; NOTHING on the side that has none."""

    key: str
    first: Any
    second: Any


def differences(first: Recipe, second: Recipe) -> list[Difference]:
    """Every difference, under the dotted key of the first where both have it."""
    return list(between(_meaning(first), _meaning(second), ()))


def _meaning(recipe: Recipe) -> dict[str, Any]:
    """A recipe without what only serves to write it, and with what a left-out key stands for."""
    table: dict[str, Any] = encode(recipe)
    table.pop("hyperparameters", None)  # their values stand where they are referred to
    table["train"]["micro_batch_size"] = recipe.train.micro
    return table


def between(first: Any, second: Any, place: Place) -> Iterator[Difference]:
    """Every difference between two tables, or what else TOML knows, under `place`."""
    if first == second:
        return
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in dict.fromkeys([*first, *second]):
            yield from between(first.get(key, NOTHING), second.get(key, NOTHING), (*place, key))
    elif _holds_tables(first) and _holds_tables(second):
        yield from _between_arrays(first, second, place)
    else:
        yield Difference(dotted(place), first, second)


def _holds_tables(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, Mapping) for item in value)


def _between_arrays(first: list[Any], second: list[Any], place: Place) -> Iterator[Difference]:
    """Arrays of tables, such as layers: one that was put in or taken out does not make the rest differ."""
    texts = [[json.dumps(item, sort_keys=True, default=str) for item in side] for side in (first, second)]
    matcher = SequenceMatcher(None, texts[0], texts[1], autojunk=False)
    for what, low, high, start, end in matcher.get_opcodes():
        if what == "equal":
            continue
        ours, theirs = first[low:high], second[start:end]
        for number in range(max(len(ours), len(theirs))):
            has_both = number < min(len(ours), len(theirs))
            here = (*place, low + number if number < len(ours) else start + number)
            if has_both and _kind(ours[number]) == _kind(theirs[number]):
                yield from between(ours[number], theirs[number], here)
            else:
                a = ours[number] if number < len(ours) else NOTHING
                b = theirs[number] if number < len(theirs) else NOTHING
                yield Difference(dotted(here), a, b)


def _kind(layer: Any) -> Any:
    return layer.get("kind") if isinstance(layer, Mapping) else None
