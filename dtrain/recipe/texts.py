"""The texts that say a recipe's values: files, and arguments of the command line."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import tomli

from dtrain.errors import RecipeError, RecipeErrors, Spot
from dtrain.recipe.positions import Positions, Span
from dtrain.spec.words import ESCAPE, MOST, PART, Place, nearest, placed, unescaped

LARGEST = 400_000  # bytes of a file; what is larger is data
MOST_VALUES = 10_000  # values of a file; a recipe has some hundreds
DEEPEST = 40  # tables within tables; a recipe needs about ten
DOUBLED = ("twice", "overwrite", "Duplicate", "immutable")  # what tomli says of keys that stand twice
HINTS = {  # what tomli says, and what would do
    "Invalid value": "this is no value; a string stands in quotes, a number has digits, and true and false "
    "are written so",
    "Expected newline or end of document after a statement": "one key = value a line would do",
    "Expected '=' after a key in a key/value pair": "a key is followed by = and its value",
    "Invalid statement": "a line is key = value, or a [table]",
}


@dataclass(frozen=True)
class Text:
    """A text that says values; positions in it are worked out when they are asked for."""

    name: str  # what errors call it: the file's path, or "argument 2"
    content: str | None  # None of a table that no text says
    folder: Path  # that relative paths in it are relative to
    place: Place | None = None  # of an argument: the one value that it sets
    is_file: bool = True

    @cached_property
    def lines(self) -> list[str]:
        return (self.content or "").split("\n")

    @cached_property
    def positions(self) -> Positions:
        return Positions(self.content or "")

    def spot(self, place: Place, *, is_key: bool = False) -> Spot | None:
        """Where the key or the value of a place stands; of one that is not there, the table that lacks it."""
        if self.content is None:
            return None
        if not self.is_file:
            return self._spot_in_argument(place, is_key)
        marks = self.positions.marks
        for length in range(len(place), 0, -1):
            mark = marks.get(place[:length])
            if mark is not None:
                is_there = length == len(place)
                span = mark.key if is_key and is_there and mark.key is not None else mark.value
                return self.of(span)
        return self.of(Span(0, 0, 1))

    def says(self, place: Place) -> bool:
        """Whether a place is written in it."""
        return self.is_file and self.content is not None and place in self.positions.marks

    def at(self, offset: int, length: int = 1) -> Spot:
        """The place of a character."""
        before = (self.content or "")[:offset]
        return self.of(Span(before.count("\n"), offset - before.rfind("\n") - 1, length))

    def of(self, span: Span) -> Spot:
        """A stretch of the text."""
        return Spot(self.name, span.row + 1, span.column + 1, span.length, self.lines[span.row])

    def inside(self, spot: Spot, value: Any, first: int, length: int) -> Spot:
        """The place of some characters of the string that is written at `spot`, and has become `value`."""
        offset = sum(len(line) + 1 for line in self.lines[: max(spot.line - 1, 0)]) + spot.column - 1
        letters, places = written_letters(self.content or "", offset)
        if letters != value:  # a reference in it has become something else
            word = str(value)[first : first + length]
            if letters.count(word) != 1:
                return spot
            first = letters.index(word)
        if first >= len(places):
            return spot
        begin, last = places[first], places[min(first + length, len(places)) - 1]
        end = (self.content or "").find("\n", begin, last + 1)
        found = self.at(begin, (last + 1 if end < 0 else end) - begin)
        return found if spot.line else found._replace(line=0)

    def _spot_in_argument(self, place: Place, is_key: bool) -> Spot:
        """As in a file, where the argument is `a.b.c=value`: its last key, or what stands in its value."""
        assert self.place is not None
        content = self.content or ""
        key, _, value = content.partition("=")
        after = len(key) + 1
        if is_key and len(place) <= len(self.place):
            start, end = [found.span() for found in PART.finditer(key)][len(place) - 1]
            return Spot(self.name, 0, start + 1, max(end - start, 1), content)
        inside = Positions(f"v = {value}").marks
        for length in range(len(place), len(self.place), -1):
            mark = inside.get(("v", *place[len(self.place) : length]))
            if mark is not None:
                span = mark.key if is_key and length == len(place) and mark.key else mark.value
                return Spot(self.name, 0, span.column - 4 + after + 1, span.length, content)
        return Spot(self.name, 0, after + 1, max(len(value), 1), content)


def written_letters(content: str, offset: int) -> tuple[str, list[int]]:
    """The characters of the TOML string at an offset, or of a value without quotes, and where each is."""
    quote = next((q for q in ('"""', "'''", '"', "'") if content.startswith(q, offset)), "")
    position = offset + len(quote)
    if len(quote) == 3 and content.startswith("\n", position):
        position += 1
    letters, places = "", []
    while position < len(content) and not (quote and content.startswith(quote, position)):
        escape = ESCAPE.match(content, position) if quote.startswith('"') else None
        if escape is not None and escape[1].isspace():  # a line's end that is escaped, and what follows
            position = escape.end() + len(content[escape.end() :]) - len(content[escape.end() :].lstrip())
            continue
        letters += content[position] if escape is None else unescaped(escape)
        places.append(position)
        position = position + 1 if escape is None else escape.end()
    return letters, places


def open_text(path: Path, folder: Path | None = None, *, what: str = "recipe") -> Text:
    """The file of a recipe, or of `what` else. Raises RecipeError if there is none, or it cannot be one."""
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may have no end
            raise RecipeError("", f"{path}: cannot be read: it is not a file")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        near = near_path(path, str(path))
        raise RecipeError("", f"{path}: there is no such {what}", suggestion=near) from None
    except OSError as error:
        raise RecipeError("", f"{path}: cannot be read: {error.strerror or error}") from None
    if len(content) > LARGEST:
        raise RecipeError(
            "", f"{path}: is larger than {LARGEST:,} bytes; a {what} is text, data lies beside it"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError("", f"{path}: cannot be read: it is not UTF-8 (byte {error.start})") from None
    return Text(str(path), text.replace("\r\n", "\n"), (folder or path.parent).absolute())


def near_path(path: Path, written: str) -> str | None:
    """What was meant by a path that leads nowhere: what is there and near, written as that was."""
    there = next(parent for parent in path.parents if parent.is_dir())
    rest = path.relative_to(there).as_posix()
    near = nearest(rest, sorted(_names_in(there, rest.count("/") + 1)))
    if near is None:
        return None
    parts = written.split("/")
    return "/".join([*parts[: len(parts) - rest.count("/") - 1], near])


def _names_in(folder: Path, depth: int) -> list[str]:
    """Paths of files and folders so many levels down, and one more, as far as they are few."""
    found: list[str] = []
    folders = [("", depth)]
    for above, left in folders:
        try:
            with os.scandir(folder / above) as entries:
                for entry in islice(entries, MOST - len(found)):
                    found.append(above + entry.name)
                    if left and entry.is_dir(follow_symlinks=False):
                        folders.append((f"{above}{entry.name}/", left - 1))
        except OSError:
            continue
    return found


def parse(text: Text) -> dict[str, Any]:
    """The table of a TOML file. Raises RecipeError, or RecipeErrors where keys stand twice."""
    try:
        table = tomli.loads(text.content or "")
    except tomli.TOMLDecodeError as error:
        _complain(text, error)
    except RecursionError:
        raise RecipeError("", f"{text.name}: not TOML that can be read: tables nest too deeply") from None
    except ValueError:  # a number of more digits than Python reads
        long = re.search(r"[\d_]{1000,}", text.content or "")
        spot = text.at(long.start(), 1) if long else None
        raise RecipeError("", "not TOML that can be read: a number has too many digits", spot=spot) from None
    _refuse_too_much(table, text)
    return table


def _complain(text: Text, error: tomli.TOMLDecodeError) -> NoReturn:
    if any(word in error.msg for word in DOUBLED):
        from dtrain.recipe.doubled import doubled_keys

        if errors := list(doubled_keys(text)):
            raise RecipeErrors(errors, text.name)
    hint = HINTS.get(error.msg, error.msg[0].lower() + error.msg[1:])
    end = re.compile(r"[^\s,\]}#=]*").match(error.doc, error.pos)
    spot = text.at(error.pos, max(len(end[0]) if end else 1, 1))
    raise RecipeError("", f"not TOML: {hint}", spot=spot)


def _refuse_too_much(table: Mapping[str, Any], text: Text) -> None:
    """Refuse what no recipe is; without recursion, which a table might exhaust."""
    heap: list[tuple[Any, int, str]] = [(item, 1, key) for key, item in table.items()]
    count = 0
    while heap:
        value, depth, top = heap.pop()
        count += 1
        if depth > DEEPEST:
            raise RecipeError(top, f"tables nest more than {DEEPEST} deep", spot=text.at(0))
        if count > MOST_VALUES:
            said = f"holds more than {MOST_VALUES:,} values; what is so long belongs into a file of its own"
            raise RecipeError("", said, spot=text.at(0))
        if isinstance(value, dict):
            heap += [(item, depth + 1, top) for item in value.values()]
        elif isinstance(value, list):
            heap += [(item, depth + 1, top) for item in value]


def argument(number: int, content: str) -> tuple[Text, Place, Any]:
    """One `a.b.c=value` of the command line: its text, the place that it sets and the value.

    The value is TOML; what is not is taken as a string. Raises RecipeError for a malformed one.
    """
    key, equals, value = content.partition("=")
    name = f"argument {number}"
    spot = Spot(name, 0, 1, max(len(content), 1), content)
    place = tuple(int(p) if isinstance(p, str) and p.isdigit() else p for p in placed(key))
    if not equals or not place or "" in place:
        said = f"{content!r} is not an override; write key=value, as in train.steps=100"
        raise RecipeError("", said, spot=spot)
    try:
        found = tomli.loads(f"value = {value}")
        is_one = list(found) == ["value"]
    except (ValueError, RecursionError):
        is_one = False
    return Text(name, content, Path.cwd(), place, is_file=False), place, found["value"] if is_one else value
