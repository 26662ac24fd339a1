"""A mistake told once: a key that was moved is missing in one table and unknown in another."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dtrain.errors import RecipeError
from dtrain.recipe.document import Document, at, has
from dtrain.recipe.keys import owners, type_at, vocabulary
from dtrain.recipe.references import REFERENCE, Dangling
from dtrain.recipe.stacks import NoParameter
from dtrain.spec.decode import MissingKey, UnknownKey, decode
from dtrain.spec.words import Place, dotted, nearest, placed

STACK = ("parameters", "defaults")  # keys of a stack
EITHER = {"steps": ("steps", "epochs")}  # keys of which one is missing where neither is there


def told_once(
    mistakes: Sequence[RecipeError], document: Document, written: Mapping[str, Any]
) -> list[RecipeError]:
    """The mistakes in the tables and those of the document's references, as many as were made.

    `written` is the recipe with its references in it.
    """
    mistakes = [*mistakes, *(error for error in document.errors if type(error) is MissingKey)]
    absences = [mistake for mistake in mistakes if not has(document.table, placed(mistake.key))]
    strays = [mistake for mistake in mistakes if mistake not in absences]
    found: list[RecipeError] = []
    for home, group in _by_home(absences, document).items():
        if (stray := _stray_of(group[0], strays, document)) is not None:
            strays[strays.index(stray)] = _moved(stray, f"{_name(home[:-1])} needs it")
        elif (name := _unread_of(group[0], home, written)) is not None:
            said = f"nothing refers to it, and {_name(home[:-1])} needs {home[-1]}"
            found.append(RecipeError(name, said, is_key=True))
        else:
            found += group
    references, settled = _told_with(document.errors, strays, written)
    found += [_with_owner(stray) if type(stray) is UnknownKey else stray for stray in strays]
    told = references + _not_said_before(found, document, [*references, *settled])
    return told or [*mistakes, *document.errors]  # whatever follows from what, something is wrong


def _by_home(absences: Sequence[RecipeError], document: Document) -> dict[Place, list[RecipeError]]:
    """Keys that are missing, by where they would have to be written: "*" serves several models."""
    groups: dict[Place, list[RecipeError]] = {}
    for absence in absences:
        groups.setdefault(document.said_at(placed(absence.key)).place, []).append(absence)
    return groups


def _stray_of(absence: RecipeError, strays: Sequence[RecipeError], document: Document) -> RecipeError | None:
    """The mistake at a key that was meant for another table: unknown where it is, or of another type."""
    place = placed(absence.key)
    names = EITHER.get(str(place[-1]), place[-1:]) if place else ()
    for stray in strays:
        here = placed(stray.key)
        if not here or here[-1] not in names or here[:-1] == place[:-1] or isinstance(stray, Moved):
            continue
        if type(stray) is UnknownKey or _would_do(place, at(document.table, here), document.table):
            return stray
    return None


def _would_do(place: Place, value: Any, table: Mapping[str, Any]) -> bool:
    """Whether a value could stand at a place where there is none."""
    target = type_at(table, place)
    return target is not None and not decode(target, value)[1]


class Moved(UnknownKey):
    """A key that was meant for another table."""


def _moved(stray: RecipeError, where: str) -> RecipeError:
    said = "unknown key here" if type(stray) is UnknownKey else "this does not belong here"
    return Moved(stray.key, f"{said}; {where}", is_key=True)


def _unread_of(absence: RecipeError, home: Place, written: Mapping[str, Any]) -> str | None:
    """The hyperparameter that was meant for the table which lacks a key of its name.

    Where that table refers to others, or it is the only one, the reference to it was forgotten instead.
    """
    names, key = unread(written), str(home[-1])
    table = at(written, home[:-1]) if has(written, home[:-1]) else {}
    is_only_one = len(written.get("hyperparameters", ())) == len(names)
    is_forgotten = key != "kind" and (is_only_one or any(_references(list(_own(table)))))
    return None if not isinstance(absence, MissingKey) or is_forgotten else names.get(key)


def _own(table: Any) -> Iterator[Any]:
    """The values of a table that are no tables."""
    if isinstance(table, dict):
        yield from (item for item in table.values() if not isinstance(item, dict))


def unread(written: Mapping[str, Any]) -> dict[str, str]:
    """Names under [hyperparameters] to which nothing refers, with their keys."""
    named = written.get("hyperparameters")
    heads = {placed(name)[:2] for name in _references(written)}
    places = [("hyperparameters", str(name)) for name in named] if isinstance(named, dict) else []
    return {place[1]: dotted(place) for place in places if place not in heads}


def _references(value: Any) -> Iterator[str]:
    """Every name that is referred to."""
    if isinstance(value, str):
        yield from REFERENCE.findall(value) if "${" in value else ()
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _references(item)


def _told_with(
    errors: Sequence[RecipeError], strays: list[RecipeError], written: Mapping[str, Any]
) -> tuple[list[RecipeError], list[RecipeError]]:
    """Those of the references that lead nowhere for no other reason, and those that are settled."""
    found: list[RecipeError] = []
    settled: list[RecipeError] = []
    counts: dict[Place, int] = {}
    for error in errors:
        if isinstance(error, Dangling):
            counts[error.target] = counts.get(error.target, 0) + 1
    for error in errors:
        if isinstance(error, NoParameter) and any(placed(s.key)[-1] in STACK for s in strays):
            continue  # what lists the parameters was moved
        if not isinstance(error, Dangling):
            found += [] if type(error) is MissingKey else [error]
            continue
        place = placed(error.key)
        unknown = [placed(stray.key) for stray in strays if isinstance(stray, UnknownKey)]
        if any(place[: len(here)] == here for here in unknown):
            continue  # what it stands in is none
        if any(placed(stray.key) == error.target[:1] for stray in strays):
            settled.append(error)  # the table that it refers to is none
            continue
        last = error.target[-1:]
        stray = next((s for s in strays if type(s) is UnknownKey and placed(s.key)[-1:] == last), None)
        if stray is not None:
            strays[strays.index(stray)] = _moved(stray, f"{error.key} refers to {dotted(error.target)}")
        elif not any(_is_moved_for(s, error) for s in strays):
            found.append(_misnamed(error, counts[error.target], written) or error)
        settled.append(error)
    return found, settled


def _is_moved_for(stray: RecipeError, error: Dangling) -> bool:
    return stray.message.endswith(f" refers to {dotted(error.target)}")


def _misnamed(error: Dangling, count: int, written: Mapping[str, Any]) -> RecipeError | None:
    """The hyperparameter whose name is misspelt, rather than the reference to it, so far as one can tell."""
    if len(error.target) < 2 or error.target[0] != "hyperparameters":
        return None
    name, names = str(error.target[1]), unread(written)
    near = nearest(name, names)
    if near is None:
        return None
    key = placed(error.key)[-1]
    words = vocabulary()
    is_misnamed = count > 1 or name == key or (near != key and name in words and near not in words)
    said = f"nothing refers to it, but {error.key} refers to {name}"
    return RecipeError(names[near], said, is_key=True, suggestion=name) if is_misnamed else None


def _with_owner(mistake: RecipeError) -> RecipeError:
    """Say of an unknown key which tables have it."""
    key = placed(mistake.key)[-1]
    where = owners(str(key)) if mistake.message.startswith("unknown key") else ""
    if not where:
        return mistake
    is_near = mistake.suggestion is not None and nearest(key, [mistake.suggestion]) is not None
    near = mistake.suggestion if is_near else None
    return UnknownKey(mistake.key, f"unknown key here; {where} has it", is_key=True, suggestion=near)


def _not_said_before(
    errors: Sequence[RecipeError], document: Document, said: Sequence[RecipeError]
) -> list[RecipeError]:
    """Those mistakes that do not follow from one that is `said`, at the same place or above.

    That a key is unknown never does.
    """
    places = {placed(error.key) for error in said if error.key}

    def follows(error: RecipeError) -> bool:
        place = placed(error.key)
        ways = (place, document.said_at(place).place)
        return any(way[:length] in places for way in ways for length in range(1, len(way) + 1))

    return [error for error in errors if isinstance(error, UnknownKey) or not follows(error)]


def _name(place: Place) -> str:
    return dotted(place) or "the top of the recipe"
