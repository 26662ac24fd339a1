"""Where each value of a resolved recipe came from."""

from collections.abc import Iterator, Mapping
from typing import Any

from dtrain.recipe.document import Document, has
from dtrain.recipe.values import Recipe
from dtrain.recipe.write import encode
from dtrain.spec.words import Place, dotted, written

WIDEST = 60  # characters of a value that keep the remarks in one column


def lines(recipe: Recipe, document: Document) -> Iterator[str]:
    """`train.steps = 4800  # recipes/gan.toml:65:9` for each value; an override takes the left side."""
    values = list(leaves(encode(recipe), ()))
    texts = [f"{dotted(place)} = {written(value)}" for place, value in values]
    width = max(len(text) for text in texts if len(text) <= WIDEST)
    for text, (place, _) in zip(texts, values, strict=True):
        yield f"{text:<{width}}  # {origin(place, document)}"


def origin(place: Place, document: Document) -> str:
    """Where a value was said, and who referred to it; "default" where nobody said it."""
    if not has(document.table, place):
        return "default"
    said = document.said_at(place)
    where = str(said.text.spot(said.place))
    if said.through is None:
        return where
    return f"{where}, through {said.through.text.spot(said.through.place)}"


def leaves(value: Any, place: Place) -> Iterator[tuple[Place, Any]]:
    """The single values of a table, and its arrays of single values, each with its place."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from leaves(item, (*place, key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value):
            yield from leaves(item, (*place, number))
    else:
        yield place, value
