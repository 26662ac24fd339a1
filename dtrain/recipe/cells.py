"""From a recipe with a sweep to the recipes of its trials: each is checked as if somebody had written it."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from dtrain.errors import DtrainError, RecipeError, RecipeErrors, Spot
from dtrain.recipe.compose import open_place, places
from dtrain.recipe.document import Document, Said, copied, has
from dtrain.recipe.fit import check_data
from dtrain.recipe.load import from_document
from dtrain.recipe.locate import located
from dtrain.recipe.plan import pace_of
from dtrain.recipe.values import Recipe
from dtrain.spec.axes import Axis, same, same_place
from dtrain.spec.sweep import Sweep
from dtrain.spec.words import Place, brief, dotted, nearest, placed, show
from dtrain.spec.words import written as in_full

AXES = ("sweep", "axes")
MOST_CHECKED = 500  # trials that are looked at before the first is trained; each takes some milliseconds

Settings = Mapping[str, Any]  # what is set in a trial, by the dotted keys of its axes


def trial(
    written: Document,
    sweep: Sweep,
    settings: Settings,
    *,
    after: int = 0,
    imports: bool = True,
    hashes: bool = True,
    processes: int = 1,
) -> Recipe:
    """The recipe in which axes have these values, with a seed that comes so many `after` its own.

    `written` is the document as it was read, and stays so. Raises RecipeErrors with what is wrong, at the
    line of the axis or with the values that made it so; DataError if the data cannot be read.
    """
    try:
        return _trial(written, sweep, settings, after, imports, hashes, processes)
    except RecipeErrors as error:
        raise RecipeErrors([_with(one, settings) for one in error.errors], error.source) from None


def _trial(
    written: Document,
    sweep: Sweep,
    settings: Settings,
    after: int,
    imports: bool,
    hashes: bool,
    processes: int,
) -> Recipe:
    document = copied(written)
    document.table.pop("sweep", None)
    document.errors = []
    set_by: dict[Place, str] = {}
    for key, value in sorted(settings.items(), key=lambda item: not item[0].startswith("optimizers.*.")):
        said = _said(written, sweep, key, value, settings)
        for place in _set(document, key, value, said):
            others = (other for there, other in set_by.items() if there[: len(place)] == place)
            if (other := next(others, key)) != key:
                does = "does" if place in set_by else "sets a part of that"
                wrong = f"sets {dotted(place)}, and the axis {show(other)} {does}; one of them would do"
                raise located(document, [RecipeError(dotted((*AXES, key)), wrong, spot=_key_spot(said))])
            set_by[place] = key
    seed = document.table.get("seed", 0)
    if isinstance(seed, int):
        document.table["seed"] = seed + after
    recipe = from_document(document, imports=imports, hashes=hashes)
    data = check_data(recipe, document, processes)
    pace = pace_of(recipe.train, recipe.system, None if data is None else data.count)
    if errors := list(_unfit(recipe, sweep, None if pace is None else pace.total)):
        raise located(document, errors)
    return recipe if isinstance(seed, int) else replace(recipe, seed=recipe.seed + after)


def check_trials(written: Document, sweep: Sweep, *, imports: bool = True, processes: int = 1) -> None:
    """Look at the trials to come: of a grid at all, or the first of very many; of others at the extremes.

    Raises RecipeErrors with every mistake of them, each once.
    """
    if errors := list(_misplaced(written, sweep)):
        raise RecipeErrors(errors, written.main.name)
    grid = sweep.grid() if sweep.is_grid else []
    wanted = grid if 0 < len(grid) <= MOST_CHECKED else list(sweep.samples())

    def wrong_in(settings: Settings) -> tuple[RecipeError, ...]:
        try:
            _trial(written, sweep, settings, 0, imports, False, processes)
        except RecipeErrors as error:
            return error.errors
        return ()

    alone: dict[tuple[str, str], list[str]] = {}  # what is wrong where one value alone is set

    def leads_to(key: str, value: Any, error: RecipeError) -> bool:
        place = key, in_full(value)
        if place not in alone:
            try:
                alone[place] = list(map(str, wrong_in({key: value})))
            except DtrainError:  # of data that no trial may have
                alone[place] = []
        return str(error) in alone[place]

    found: dict[tuple[Any, ...], RecipeError] = {}
    for settings in wanted[:MOST_CHECKED]:
        for error in wrong_in(settings):
            one = error
            if not _is_of_axis(error):
                causes = (key for key, value in settings.items() if leads_to(key, value, error))
                if cause := next(causes, None):
                    one = _at_cell(error, _said(written, sweep, cause, settings[cause], settings))
            found.setdefault((one.spot, one.key), _with(one, settings))
    if found:
        ordered = sorted(
            found.values(), key=lambda one: (one.spot.line, one.spot.column) if one.spot else (0, 0)
        )
        raise RecipeErrors(ordered, written.main.name)


def _misplaced(written: Document, sweep: Sweep) -> Iterator[RecipeError]:
    """Axes of what no recipe of a trial has, or nothing refers to."""
    named = written.table.get("hyperparameters")
    for key in sweep.axes:
        place, spot = placed_in(key), written.spot((*AXES, key), is_key=True)
        if place[0] == "sweep":
            yield RecipeError(dotted((*AXES, key)), "an axis cannot be of [sweep] itself", spot=spot)
        elif place[0] == "hyperparameters" and not has(written.table, place):
            near = nearest(place[1], named) if len(place) == 2 and isinstance(named, dict) else None
            said = "there is no such hyperparameter, and nothing refers to it"
            yield RecipeError(dotted((*AXES, key)), said, suggestion=near, spot=spot)


def _unfit(recipe: Recipe, sweep: Sweep, steps: int | None) -> Iterator[RecipeError]:
    """What of a trial of so many steps would leave the sweep without what it compares by."""
    if "jsonl" not in recipe.track.kinds:
        said = 'a sweep reads metrics.jsonl of its runs; "jsonl" belongs here, too'
        yield RecipeError("track.kinds", said)
    every = recipe.every.evaluate
    if sweep.prune is not None and (not every or (steps is not None and every >= steps)):
        said = f"found {every}: nothing would be evaluated before the end, by which sweep.prune goes"
        hint = "sweep.prune can be left out" if steps == 1 else f"{max((steps or 2500) // 5, 1)} would do"
        yield RecipeError("every.evaluate", f"{said}; {hint}")


def in_words(settings: Settings) -> str:
    """`optimizers.*.lr = 0.001, train.batch_size = 32`."""
    return ", ".join(f"{key} = {brief(value)}" for key, value in settings.items()) or "as it stands"


def _set(document: Document, key: str, value: Any, said: Said) -> Iterator[Place]:
    """Set a key, or with a `*` that names nothing all that stand there; the places that were set."""
    for place in list(places(document.table, placed_in(key))):
        try:
            open_place(document, place)
            new = next(
                (n for n in range(1, len(place) + 1) if not has(document.table, place[:n])), len(place)
            )
            document.set(place, thawed(value), said.text)
        except RecipeErrors as error:
            wrong = [one.written_at(dotted((*AXES, key)), _key_spot(said)) for one in error.errors]
            raise RecipeErrors(wrong, document.main.name) from None
        for length in range(new, len(place) + 1):
            document.said[place[:length]] = said
        yield place


def placed_in(key: str) -> Place:
    """The place of a dotted key; `layers.0` is the first item."""
    return tuple(int(part) if isinstance(part, str) and part.isdigit() else part for part in placed(key))


def thawed(value: Any) -> Any:
    """Tables and arrays as a document has them."""
    if isinstance(value, Mapping):
        return {key: thawed(item) for key, item in value.items()}
    return [thawed(item) for item in value] if isinstance(value, tuple) else value


def _key_spot(said: Said) -> Spot | None:
    return said.text.spot(said.key or said.place, is_key=True)


def _said(written: Document, sweep: Sweep, key: str, value: Any, settings: Settings) -> Said:
    """Where a value was written: in an array, as an end, or at least by which axis."""
    own: Place = (*AXES, key)
    given, axis = sweep.axes[key], sweep.all_axes[key]
    base: Place = own if not isinstance(given, Axis) else (*own, "values")
    place: Place = own
    if axis.values is not None:
        others = axis.values
        if (tied := axis.tied) is not None and tied in settings:
            place = (*base, same_place(settings[tied], sweep.all_axes[tied].values or ()))
        elif tied is None:
            place = (*base, same_place(value, others))
    else:
        for way in ("uniform", "log_uniform", "range", "log_range"):
            ends = getattr(axis, way)
            if ends is not None:
                place = (*own, way, *[n for n, end in enumerate(ends[:2]) if same(end, value)][:1])
    said = written.said_at(place)
    return said._replace(key=written.said_at(own).place)


def _is_of_axis(error: RecipeError) -> bool:
    return error.key.startswith(dotted(AXES))


def _at_cell(error: RecipeError, said: Said) -> RecipeError:
    """A mistake elsewhere in the recipe, at the value that alone leads to it."""
    where = f" ({error.spot})" if error.spot else ""
    message = f"{error.key}{where}: {error.message}"
    return RecipeError(dotted(said.place), message, spot=said.text.spot(said.place), details=error.details)


def _with(error: RecipeError, settings: Settings) -> RecipeError:
    """A mistake that is not of one axis alone, with the values that led to it."""
    if _is_of_axis(error) or not settings:
        return error
    return error.written_at(error.key, error.spot, f" (where {in_words(settings)})")
