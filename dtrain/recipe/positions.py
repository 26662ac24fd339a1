"""Where in a TOML file each key and each value stands; asked for only when there is a mistake to place."""

from collections.abc import Iterator
from itertools import accumulate
from typing import Any, NamedTuple

import tomli

from dtrain.spec.words import Place

DEEPEST = 200  # levels; a file with more is refused for that
MANY = 100  # keys that stand twice, of which no more are told


class Span(NamedTuple):
    """A stretch of one line, counted in characters from 0."""

    row: int
    column: int
    length: int


class Mark(NamedTuple):
    """Where a key stands (None for an item of an array), and what it says; of a table its header or brace."""

    key: Span | None
    value: Span


class Positions:
    """The marks of every place of a file, and the keys that stand there twice.

    Reads as much as it can of a file that is not TOML throughout.
    """

    def __init__(self, text: str):
        import tree_sitter_toml
        from tree_sitter import Language, Parser

        self.marks: dict[Place, Mark] = {}
        self.doubled: list[tuple[Place, Span, Span]] = []  # a place, its first key and its second
        self._lines = [line.encode() for line in text.split("\n")]
        self._columns: dict[int, list[int] | None] = {}  # characters before each byte; None where as many
        self._said: dict[Place, Span] = {}
        self._counts: dict[Place, int] = {}  # of each array of tables
        tree = Parser(Language(tree_sitter_toml.language())).parse(text.encode())
        for node in tree.root_node.named_children:
            if len(self.doubled) > MANY:
                break
            if node.type == "pair":
                self._pair(node, ())
            elif node.type in ("table", "table_array_element"):
                self._table(node)

    def _table(self, node: Any) -> None:
        header, *pairs = node.named_children
        parts = list(_parts(header, self._span))
        whole = self._span(node)
        place: Place = ()
        for name, span in parts[:-1]:
            place = (*place, name)
            self.marks.setdefault(place, Mark(span, whole))
            if place in self._counts:
                place = (*place, self._counts[place] - 1)
        for name, span in parts[-1:]:
            place = (*place, name)
            if node.type == "table":
                self._say(place, span, whole)
            else:
                self.marks.setdefault(place, Mark(span, whole))
                place = (*place, self._counts.get(place, 0))
                self._counts[place[:-1]] = self._counts.get(place[:-1], 0) + 1
                self.marks[place] = Mark(None, whole)
        for pair in pairs:
            if pair.type == "pair":
                self._pair(pair, place)

    def _pair(self, node: Any, place: Place) -> None:
        if len(place) > DEEPEST or len(node.named_children) < 2:
            return
        key, value = node.named_children[:2]
        *before, (last, span) = _parts(key, self._span)
        for name, part in before:
            place = (*place, name)
            self.marks.setdefault(place, Mark(part, part))
        self._say((*place, last), span, self._span(value))
        self._value(value, (*place, last))

    def _value(self, node: Any, place: Place) -> None:
        inside = [child for child in node.named_children if child.type != "comment"]
        if len(place) > DEEPEST:
            return
        if node.type == "inline_table":
            for pair in inside:
                if pair.type == "pair":
                    self._pair(pair, place)
        elif node.type == "array":
            for number, item in enumerate(inside):
                self.marks[(*place, number)] = Mark(None, self._span(item))
                self._value(item, (*place, number))

    def _say(self, place: Place, key: Span, value: Span) -> None:
        if place in self._said:
            self.doubled.append((place, self._said[place], key))
        else:
            self._said[place] = key
            self.marks[place] = Mark(key, value)

    def _span(self, node: Any) -> Span:
        """Where a node begins, and its length on that line; tree-sitter counts bytes."""
        row, column = node.start_point
        line = self._lines[row]
        end = node.end_point[1] if node.end_point[0] == row else len(line)
        if node.type in ("table", "table_array_element"):
            end = line.find(b"]", column) + (1 if node.type == "table" else 2)
        while end > column and line[end - 1 : end].isspace():
            end -= 1
        begin = self._characters(row, column)
        return Span(row, begin, max(self._characters(row, end) - begin, 1))

    def _characters(self, row: int, offset: int) -> int:
        """How many characters stand in so many bytes of a line, each of which is decoded once."""
        if row not in self._columns:
            line = self._lines[row]
            is_first = (byte & 0xC0 != 0x80 for byte in line)
            self._columns[row] = None if line.isascii() else [0, *accumulate(is_first)]
        columns = self._columns[row]
        return offset if columns is None else columns[offset]


def _parts(node: Any, span: Any) -> Iterator[tuple[str, Span]]:
    """The names of a key, which may be dotted and quoted, in order."""
    if node.type == "dotted_key":
        for child in node.named_children:
            yield from _parts(child, span)
    else:
        text = node.text.decode()
        yield (tomli.loads(f"x = {text}")["x"] if text[:1] in "\"'" else text), span(node)
