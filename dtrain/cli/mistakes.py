"""Mistakes of a recipe as text, with the line and a caret under it, and as JSON for editors and CI."""

import unicodedata
from typing import Any

from dtrain.errors import RecipeErrors, Spot
from dtrain.spec.words import visible

WIDEST = 110  # characters of a line that are shown
UNSEEN = "\N{REPLACEMENT CHARACTER}"  # in place of what a terminal would carry out


def as_text(errors: RecipeErrors, *, with_lines: bool) -> str:
    """Each mistake on a line of its own; `with_lines` shows what was written there."""
    said = []
    for error in errors.errors:
        first = error.sentence if error.spot else f"{errors.source}: {error.sentence}"
        below = (f"    {line}" for line in error.details)
        said += [visible(line).replace("\n", "\\n") for line in (first, *below)]
        if with_lines and error.spot is not None:
            said.append(excerpt(error.spot))
    return "\n".join(said)


def excerpt(spot: Spot) -> str:
    """The line, and a caret under each character that is meant."""
    number = str(spot.line) if spot.line else ""
    start = max(0, spot.column - 1 - WIDEST // 2) if spot.column > WIDEST - 10 else 0
    text = spot.text[start : start + WIDEST]
    at = spot.column - 1 - start
    before = "".join("\t" if letter == "\t" else " " * _width(letter) for letter in text[:at])
    carets = "^" * max(1, sum(map(_width, text[at : at + spot.length])))
    shown = "".join(letter if letter.isprintable() or letter == "\t" else UNSEEN for letter in text)
    margin = " " * len(number)
    return f"    {number} | {shown}\n    {margin} | {before}{carets}"


def _width(letter: str) -> int:
    """How many columns of a terminal a letter takes."""
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def as_json(errors: RecipeErrors | None) -> dict[str, Any]:
    """What an editor needs of each mistake; lines and columns are counted from 1, arguments have line 0."""
    found = []
    for error in () if errors is None else errors.errors:
        spot = error.spot
        found.append(
            {
                "file": spot.source if spot else errors.source if errors else "",
                "line": spot.line if spot else 0,
                "column": spot.column if spot else 0,
                "length": spot.length if spot else 0,
                "key": error.key,
                "message": error.message,
                "suggestion": error.suggestion,
                "details": list(error.details),
            }
        )
    return {"ok": not found, "mistakes": found}
