"""Keys that stand twice: which of the two is out of place."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import tomli

from dtrain.errors import RecipeError
from dtrain.recipe.check import fit
from dtrain.recipe.document import Document, Said, Sayings, at
from dtrain.recipe.parts import decode_parts
from dtrain.recipe.positions import Span
from dtrain.recipe.references import resolve
from dtrain.spec.words import Place, dotted

if TYPE_CHECKING:
    from dtrain.recipe.texts import Text

MOST, MOST_TOLD = 10, 100  # doubled keys of which it is asked, and that are told
SMALL = 50_000  # characters of a recipe of which it is asked


def doubled_keys(text: "Text") -> Iterator[RecipeError]:
    """A mistake for each key that stands twice, at the one without which less is wrong."""
    doubled = text.positions.doubled
    places = {place for place, *_ in doubled}
    for number, (place, first, second) in enumerate(doubled[:MOST_TOLD]):
        if any(place[:length] in places for length in range(1, len(place))):
            continue
        is_asked = number < MOST and len(text.content or "") < SMALL
        is_first = is_asked and _mistakes(text, place, first) < _mistakes(text, place, second)
        wrong, right = (first, second) if is_first else (second, first)
        said = f"stands here twice, {'again' if is_first else 'first'} in line {right.row + 1}; keep one"
        yield RecipeError(dotted(place), said, spot=text.of(wrong))


def _mistakes(text: "Text", place: Place, span: Span) -> int:
    """How much is wrong in a recipe without one of the keys that stand twice."""
    lines = (text.content or "").split("\n")
    line, blank = lines[span.row], "_" * span.length
    lines[span.row] = line[: span.column] + blank + line[span.column + span.length :]
    try:
        table: dict[str, Any] = tomli.loads("\n".join(lines))
    except tomli.TOMLDecodeError:
        return 0  # more stands twice
    at(table, place[:-1]).pop(blank, None)
    document = Document(table, Sayings({(): Said(text, ())}))
    parts = decode_parts(resolve(document, None, lambda place: False).table)
    return len(parts.errors) + len(list(fit(parts.values.get("models", {}), parts.values.get("system"))))
