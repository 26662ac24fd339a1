"""From mistakes under their keys to mistakes at their lines."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from dtrain.errors import RecipeError, RecipeErrors
from dtrain.recipe.document import Document, Said, at
from dtrain.spec.words import Place, dotted, placed


def located(document: Document, errors: Iterable[RecipeError]) -> RecipeErrors:
    """The same mistakes, each once, where they were written, in the order of the lines."""
    found: dict[tuple[object, ...], RecipeError] = {}
    for error in errors:
        at = error if error.spot is not None or not error.key else _locate(document, error)
        found.setdefault((at.spot, at.key, "" if at.spot else at.message), at)
    names = dict.fromkeys(said.text.name for said in document.said.values())
    texts = {name: number for number, name in enumerate(names)}
    ordered = sorted(
        found.values(),
        key=lambda error: (
            (texts.get(error.spot.source, 0), error.spot.line, error.spot.column) if error.spot else (0, 0, 0)
        ),
    )
    return RecipeErrors(ordered, document.main.name)


@contextmanager
def locating(document: Document) -> Iterator[None]:
    """Give the mistakes that are found later, with the data say, their lines too."""
    try:
        yield
    except RecipeErrors as error:
        raise located(document, error.errors) from error
    except RecipeError as error:
        raise located(document, [error]) from error


def _locate(document: Document, error: RecipeError) -> RecipeError:
    place = placed(error.key)
    said = _key_at(document, place) if error.is_key else document.said_at(place)
    spot = said.text.spot(said.place, is_key=error.is_key)
    if error.within is not None and spot is not None:
        spot = said.text.inside(spot, at(document.table, place), *error.within)
    found = error.written_at(dotted(said.place), spot, _reader(said))
    folder = f"{said.text.folder}/"
    if found.suggestion is None or not found.suggestion.startswith(folder):
        return found
    near = f"./{found.suggestion.removeprefix(folder)}"  # as one would write it there
    message = error.message.removesuffix(f'; did you mean "{error.suggestion}"?') + _reader(said)
    return RecipeError(
        found.key, message, is_key=found.is_key, suggestion=near, spot=spot, details=found.details
    )


def _key_at(document: Document, place: Place) -> Said:
    """Where a key was written, whose value may have been brought there by a reference."""
    said = document.said_at(place)
    if said.key is not None:
        return said._replace(place=said.key)
    if said.through is None or place not in document.said:
        return said
    above = document.said_at(place[:-1]).below(place[-1:])
    return above if above.text.says(above.place) else said.through


def _reader(said: Said) -> str:
    """Who referred to the value: ` (for optimizers.*.lr, r.toml:71:6)`."""
    if said.through is None:
        return ""
    spot = said.through.text.spot(said.through.place)
    where = f", {spot}" if spot else ""
    return f" (for {dotted(said.through.place)}{where})"
