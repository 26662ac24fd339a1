"""What can be mistaken in a recipe's text: where its keys and values stand, and one mistake put into it.

The scanner is regular expressions and a stack, so that it shares nothing with what dtrain reads recipes by.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

import tomli

Place = tuple[int | str, ...]
SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
PART = re.compile(r'"[^"\n]*"|\'[^\'\n]*\'|[A-Za-z0-9_-]+')
SCALAR = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|[^\s,\]}#]+')
HEADER = re.compile(r"\[([^\[\]\n]+)\][^\n]*\n?")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Token(NamedTuple):
    """A part of a header, a key, or a value, from its first character to behind its last."""

    place: Place
    sort: str  # header | key | value
    start: int
    end: int
    value: Any = None  # of a value, as tomli reads it


class Section(NamedTuple):
    """The top of a file, or a table with a header of its own."""

    place: Place
    start: int  # of the header
    body: int  # behind the header's line
    end: int  # behind the last line with a key


@dataclass(frozen=True)
class Mutation:
    """One mistake in a recipe: the text with it, where it stands, and the word that was there."""

    sort: str
    what: str
    text: str
    line: int
    column: int
    word: str | None  # what stood there, where a word was changed
    is_valid: bool  # whether it leaves a good recipe, by a rule

    @property
    def where(self) -> tuple[int, int]:
        return self.line, self.column


class Scan:
    """Every token of a recipe, in order, and its sections."""

    def __init__(self, text: str):
        self.text = text
        self.table = tomli.loads(text)
        self.tokens: list[Token] = []
        self.sections: list[Section] = []
        self._sections()

    def _sections(self) -> None:
        at = SPACE.match(self.text, 0).end()
        place, start, body, end = (), 0, at, at
        while at < len(self.text):
            if found := HEADER.match(self.text, at):
                self.sections.append(Section(place, start, body, end))
                place, start, body = self._parts(at + 1, found.end(1)), at, found.end()
                end = at = body
            else:
                end = at = self._pair(place, at)
                end = self.text.find("\n", at) + 1
            at = SPACE.match(self.text, at).end()
        self.sections.append(Section(place, start, body, end))

    def _parts(self, at: int, end: int) -> Place:
        place: Place = ()
        for found in PART.finditer(self.text, at, end):
            place = (*place, found[0].strip("\"'"))
            self.tokens.append(Token(place, "header", *found.span()))
        return place

    def _pair(self, place: Place, at: int) -> int:
        key = PART.match(self.text, at)
        assert key is not None, self.text[at : at + 40]
        here = (*place, key[0].strip("\"'"))
        self.tokens.append(Token(here, "key", *key.span()))
        equals = re.compile(r"\s*=\s*").match(self.text, key.end())
        assert equals is not None, self.text[at : at + 40]
        return self._value(here, equals.end())

    def _value(self, place: Place, at: int) -> int:
        number = len(self.tokens)
        opening = self.text[at]
        end = at + 1
        if opening in "[{":
            count = 0
            while self.text[end := SPACE.match(self.text, end).end()] not in "]}":
                if self.text[end] == ",":
                    end += 1
                elif opening == "[":
                    end, count = self._value((*place, count), end), count + 1
                else:
                    end = self._pair(place, end)
            end += 1
        else:
            end = SCALAR.match(self.text, at).end()
        value = tomli.loads(f"x = {self.text[at:end]}")["x"]
        self.tokens.insert(number, Token(place, "value", at, end, value))
        return end

    def of(self, *sorts: str) -> list[Token]:
        return [token for token in self.tokens if token.sort in sorts]

    def value_at(self, place: Place) -> Token:
        return next(token for token in self.of("value") if token.place == place)

    def section_of(self, token: Token) -> Section:
        return next(s for s in reversed(self.sections) if s.start <= token.start)

    def mutation(
        self, sort: str, token: Token, new: str, *, word: str | None = None, is_valid: bool = False
    ) -> Mutation:
        """The mistake that another text stands in place of a token."""
        old = self.text[token.start : token.end]
        text = self.text[: token.start] + new + self.text[token.end :]
        what = f"{'.'.join(map(str, token.place))}: {old[:40]} -> {new[:40]}"
        return Mutation(sort, what, text, *position(text, token.start), word, is_valid)


def position(text: str, offset: int) -> tuple[int, int]:
    """Line and column of a character, counted from 1."""
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)


def misspelt(word: str, random: Random, letters: str = LETTERS) -> str:
    """A word with one letter changed, inserted or dropped, or two neighbours swapped."""
    while True:
        at = random.randrange(len(word))
        match random.choice(("change", "insert", "drop", "swap")):
            case "change":
                new = word[:at] + random.choice(letters) + word[at + 1 :]
            case "insert":
                new = word[:at] + random.choice(letters) + word[at:]
            case "drop":
                new = word[:at] + word[at + 1 :]
            case _:
                new = word[:at] + word[at + 1 : at + 2] + word[at] + word[at + 2 :]
        if new and new != word:
            return new


def entries(scan: Scan) -> Iterator[tuple[Token, Token]]:
    """Every key with its value."""
    values = {token.place: token for token in scan.of("value")}
    for key in scan.of("key"):
        yield key, values[key.place]
