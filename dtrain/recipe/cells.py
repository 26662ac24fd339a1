"""From a recipe with a sweep to the recipes of its trials: each is checked as if somebody had written it."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from dtrain.errors import RecipeError, RecipeErrors
from dtrain.recipe.compose import put
from dtrain.recipe.document import Document, Said, copied, has
from dtrain.recipe.fit import check_data
from dtrain.recipe.load import from_document
from dtrain.recipe.values import Recipe
from dtrain.spec.axes import Axis, same, same_place
from dtrain.spec.sweep import Sweep
from dtrain.spec.words import Place, dotted, placed, show

AXES = ("sweep", "axes")
MOST_CHECKED = 500  # trials that are looked at before the first is trained; each takes some milliseconds

Settings = Mapping[str, Any]  # what is set in a trial, by the dotted keys of its axes


def trial(
    written: Document, sweep: Sweep, settings: Settings, *, after: int = 0, hashes: bool = True
) -> Recipe:
    """The recipe in which axes have these values, with a seed that comes so many `after` its own.

    `written` is the document as it was read, and stays so. Raises RecipeErrors with what is wrong, at the
    line of the axis or with the values that made it so; DataError if the data cannot be read.
    """
    document = copied(written)
    document.table.pop("sweep", None)
    document.errors = []
    for key, value in sorted(settings.items(), key=lambda item: not item[0].startswith("optimizers.*.")):
        _set(document, key, value, sweep.all_axes[key], _said(written, sweep, key, value, settings))
    try:
        recipe = from_document(document, hashes=hashes)
        check_data(recipe, document, 1)
    except RecipeErrors as error:
        raise RecipeErrors([_with(one, settings) for one in error.errors], error.source) from None
    return replace(recipe, seed=recipe.seed + after)


def check_trials(written: Document, sweep: Sweep) -> None:
    """Look at the trials to come: of a grid at all, or the first of very many; of others at the extremes.

    Raises RecipeErrors with every mistake of them, each once.
    """
    grid = sweep.grid() if sweep.is_grid else []
    wanted = grid if 0 < len(grid) <= MOST_CHECKED else list(sweep.samples())
    found: dict[tuple[Any, ...], RecipeError] = {}
    for settings in wanted[:MOST_CHECKED]:
        try:
            trial(written, sweep, settings, hashes=False)
        except RecipeErrors as error:
            for one in error.errors:
                where = (one.spot, one.key, one.message if one.key.startswith("sweep.axes") else "")
                found.setdefault(where, one)
    if found:
        ordered = sorted(
            found.values(), key=lambda one: (one.spot.line, one.spot.column) if one.spot else (0, 0)
        )
        raise RecipeErrors(ordered, written.main.name)


def in_words(settings: Settings) -> str:
    """`optimizers.*.lr = 0.001, train.batch_size = 32`."""
    return ", ".join(f"{key} = {brief(value)}" for key, value in settings.items())


def brief(value: Any) -> str:
    """A value as a table shows it: numbers with six digits."""
    return f"{value:.6g}" if isinstance(value, float) else show(value)


def places(table: Any, place: Place) -> Iterator[Place]:
    """The places that a key with a `*` means: that of this name, or else each that is there."""
    for number, part in enumerate(place):
        above = place[:number]
        if part == "*" and has(table, above) and not has(table, (*above, "*")):
            inside: Any = table
            for step in above:
                inside = inside[step]
            if isinstance(inside, dict) and inside:
                for name in list(inside):
                    yield from places(table, (*above, name, *place[number + 1 :]))
                return
    yield place


def _set(document: Document, key: str, value: Any, axis: Axis, said: Said) -> None:
    """Set a key, or with a `*` that names nothing all that stand there."""
    for place in places(document.table, placed_in(key)):
        new = next((n for n in range(1, len(place) + 1) if not has(document.table, place[:n])), len(place))
        try:
            put(document, place, thawed(value), said.text)
        except RecipeErrors as error:
            spot = said.text.spot(said.key or said.place, is_key=True)
            wrong = [one.written_at(one.key, spot) for one in error.errors]
            raise RecipeErrors(wrong, document.main.name) from None
        for length in range(new, len(place) + 1):
            document.said[place[:length]] = said


def placed_in(key: str) -> Place:
    """The place of a dotted key; `layers.0` is the first item."""
    return tuple(int(part) if isinstance(part, str) and part.isdigit() else part for part in placed(key))


def thawed(value: Any) -> Any:
    """Tables and arrays as a document has them."""
    if isinstance(value, Mapping):
        return {key: thawed(item) for key, item in value.items()}
    return [thawed(item) for item in value] if isinstance(value, tuple) else value


def _said(written: Document, sweep: Sweep, key: str, value: Any, settings: Settings) -> Said:
    """Where a value was written: in an array, as an end, or at least by which axis."""
    own: Place = (*AXES, key)
    given, axis = sweep.axes[key], sweep.all_axes[key]
    base: Place = own if not isinstance(given, Axis) else (*own, "values")
    place: Place = own
    if axis.values is not None:
        others = axis.values
        if axis.tied is not None:
            place = (*base, same_place(settings[axis.tied], sweep.all_axes[axis.tied].values or ()))
        else:
            place = (*base, same_place(value, others))
    else:
        for way in ("uniform", "log_uniform", "range", "log_range"):
            ends = getattr(axis, way)
            if ends is not None:
                place = (*own, way, *[n for n, end in enumerate(ends[:2]) if same(end, value)][:1])
    said = written.said_at(place)
    return said._replace(key=written.said_at(own).place)


def _with(error: RecipeError, settings: Settings) -> RecipeError:
    """A mistake that is not of one axis alone, with the values that led to it."""
    if error.key.startswith(dotted(AXES)) or not settings:
        return error
    return error.written_at(error.key, error.spot, f" (where {in_words(settings)})")
