"""From files and arguments to one document: what it extends, then the file, --set-file, and overrides."""

import copy
import dataclasses
import os
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from dtrain.errors import RecipeError, RecipeErrors
from dtrain.recipe.document import UNSET, Document, Said, Sayings, at, has
from dtrain.recipe.references import REFERENCE
from dtrain.recipe.texts import argument, near_path, open_text, parse
from dtrain.spec.trust import EVERYTHING, Trust
from dtrain.spec.words import Place, placed, show

MANIFEST = "manifest.json"  # of a checkpoint
MOST_FILES = 100  # that a recipe is put together from


def compose(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    set_files: Sequence[Path] = (),
    trust: Trust = EVERYTHING,
) -> Document:
    """Read a recipe with all that it extends and all that is said in its place.

    A recipe that is not trusted with everything, or lies in a checkpoint, reads no file outside of its
    folder. Raises RecipeErrors for what keeps the texts from being put together.
    """
    if (path.parent / MANIFEST).exists():
        trust = dataclasses.replace(trust, everything=False)
    inside = None if trust.everything else path.parent.resolve()
    document = read_document(path, (), inside, count())
    document.trust = trust
    for other in set_files:
        document.merge(read_document(other, (), None, count()))
    override(document, overrides)
    _refuse_unset(document)
    return document


def read_document(
    path: Path, extended_by: tuple[Path, ...], inside: Path | None, files: Iterator[int]
) -> Document:
    """A file's table, over those of the files that it extends; `files` counts them."""
    if next(files) > MOST_FILES:
        raise RecipeError("", f"extends more than {MOST_FILES} files, with those that they extend")
    if inside is not None and not path.resolve().is_relative_to(inside):
        raise RecipeError("", f"{path} leads out of its folder, and is not trusted")
    text = open_text(path)
    table = parse(text)
    own = Document(table, Sayings({(): Said(text, ())}))
    extends = table.pop("extends", None)
    if extends is None:
        return own
    chain = (*extended_by, path.resolve())
    errors: list[RecipeError] = []
    whole = Document({}, Sayings(own.said))
    for place, name in _names(extends):
        try:
            if not isinstance(name, str):
                raise RecipeError(
                    "extends", f"found {show(name)}; a path, as a string, or an array of them would do"
                )
            base = _base(Path(text.name).parent / name, chain, inside, name, files)
        except RecipeErrors as error:
            errors += error.errors
        except RecipeError as error:
            errors.append(error.written_at("extends", error.spot or text.spot(place)))
        else:
            whole.merge(base)
    if errors:
        raise RecipeErrors(errors, text.name)
    whole.merge(own)
    return whole


def _names(extends: Any) -> list[tuple[Place, Any]]:
    if isinstance(extends, list):
        return [(("extends", number), name) for number, name in enumerate(extends)]
    return [(("extends",), extends)]


def _base(
    path: Path, chain: tuple[Path, ...], inside: Path | None, name: str, files: Iterator[int]
) -> Document:
    path = Path(os.path.normpath(path))
    try:
        found, is_there = path.resolve(), path.exists()
    except (OSError, ValueError) as error:
        raise RecipeError("extends", f"no file can have this path: {error}") from None
    if inside is not None and not found.is_relative_to(inside):
        raise RecipeError(
            "extends", f"{show(name)} lies outside of the recipe's folder, and it is not trusted"
        )
    if found in chain:
        circle = " -> ".join(p.name for p in (*chain[chain.index(found) :], found))
        raise RecipeError("extends", f"files extend each other in a circle: {circle}")
    if not is_there:
        said = f"found {show(name)}; there is no such file"
        raise RecipeError("extends", said, suggestion=near_path(path, name))
    return read_document(path, chain, inside, files)


def _refuse_unset(document: Document) -> None:
    """Complain of every `${unset}` that is left: there was nothing to remove."""

    def visit(value: Any, place: Place) -> None:
        if value == UNSET:
            document.complain(
                place, "there is nothing here to remove; ${unset} removes what `extends` brought"
            )
        elif isinstance(value, dict):
            for key, item in list(value.items()):
                visit(item, (*place, key))
                if item == UNSET:
                    del value[key]

    visit(document.table, ())


def override(document: Document, overrides: Sequence[str]) -> None:
    """Set the values that the command line gives; those of the optimizer "*" first, whatever their order."""
    numbered = sorted(enumerate(overrides, 1), key=lambda pair: not pair[1].startswith("optimizers.*."))
    for number, content in numbered:
        try:
            text, place, value = argument(number, content)
            for each in list(places(document.table, place)):
                open_place(document, each)
                document.set(each, value, text)
        except RecipeErrors as error:
            document.errors += error.errors
        except RecipeError as error:
            document.errors.append(error)


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


def open_place(document: Document, place: Place) -> None:
    """Put a copy in the place of what several share, where a part of it is to be set."""
    _copy_star(document, place)
    _open_references(document, place)


def _open_references(document: Document, place: Place) -> None:
    """Where a reference brings the table of which one key is set, put a copy of that table in its place."""
    for length in range(1, len(place)):
        here = place[:length]
        value = at(document.table, here) if has(document.table, here) else None
        whole = REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if whole and has(document.table, target := placed(whole[1])):
            at(document.table, here[:-1])[here[-1]] = copy.deepcopy(at(document.table, target))
            document.graft(here, document, target)


def _copy_star(document: Document, place: Place) -> None:
    """Where "*" serves a model of whose optimizer one key is set, give it one of its own to set it in."""
    match place, document.table:
        case ("optimizers", str(name), _, *_), {"optimizers": {"*": _, **own}, "models": {**models}}:
            if name in models and name not in own:
                document.copy_star(name)
