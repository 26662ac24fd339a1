"""How keys and values are written in errors, and which known word a wrong one was meant to be."""

import re
from collections.abc import Iterable, Mapping
from datetime import date, time
from itertools import islice
from typing import Any

Place = tuple[int | str, ...]  # keys and numbers of items on the way from the top of a recipe
MOST = 5_000  # words among which a near one is looked for

BARE = re.compile(r"[A-Za-z0-9_*-]+")
ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
ESCAPED = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
PART = re.compile(r'"((?:[^"\\]|\\.)*)"|\'([^\']*)\'|\[(\d+)\]|([^.\[\]"\']+)|(?:^|\.)(?=\.|$)')


def dotted(place: Iterable[int | str]) -> str:
    """`("models", "generator", "layers", 3)` as `models.generator.layers[3]`."""
    text = ""
    for part in place:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            bare = BARE.fullmatch(part)
            text += f".{part}" if bare else f".{quoted(part)}"
    return text.removeprefix(".")


def placed(key: str) -> Place:
    """The place that a dotted key names: the inverse of `dotted`; an item may also be written `.3`."""
    place: list[int | str] = []
    for inside, literal, number, bare in PART.findall(key):
        if number:
            place.append(int(number))
        else:
            place.append(ESCAPE.sub(unescaped, inside) or literal or bare.strip())
    return tuple(place)


def unescaped(escape: re.Match[str]) -> str:
    """The letter that an escape stands for."""
    text = escape[1]
    if len(text) > 1:
        return chr(min(int(text[1:], 16), 0x10FFFF))
    return {"n": "\n", "t": "\t", "r": "\r"}.get(text, text)


def quoted(text: str) -> str:
    """A string as TOML writes it; what cannot be seen, or turns the text around, is escaped."""
    return '"' + "".join(ESCAPED.get(letter) or visible(letter) for letter in text) + '"'


def visible(text: str) -> str:
    """The same text, with escapes for what a terminal would carry out rather than show."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in "\n\t" else _escape(letter) for letter in text)


def in_line(value: object, most: int = 200) -> str:
    """What a stranger wrote, on one line: as `visible`, the ends of lines too, and cut where it is long."""
    text = str(value)
    shown = visible(text[:most]).replace("\n", "\\n").replace("\t", "\\t")
    return shown if len(text) <= most else f"{shown}..."


def _escape(letter: str) -> str:
    number = ord(letter)
    return f"\\u{number:04x}" if number < 1 << 16 else f"\\U{number:08x}"


def show(value: object) -> str:
    """A value as a recipe writes it, cut where it is long."""
    text = written(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def brief(value: object) -> str:
    """A value as a table shows it: numbers with six digits."""
    return f"{value:.6g}" if isinstance(value, float) else show(value)


def written(value: object) -> str:
    """A value as a recipe writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{dotted((key,))} = {written(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(written(item) for item in value) + "]"
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value)


def nearest(word: object, known: Iterable[str], first: Iterable[str] = ()) -> str | None:
    """The known word that `word` was meant to be, if one is near; of two, one of `first`, or the earlier."""
    preferred, text = set(first), str(word)
    best = min(
        (
            (distance(text, other), other not in preferred, number, other)
            for number, other in enumerate(islice(known, MOST))
            if other != text
        ),
        default=None,
    )
    return best[3] if best and best[0] <= max(1, max(len(text), len(best[3])) // 3) else None


def distance(a: str, b: str) -> float:
    """Letters to insert, drop, replace or swap with a neighbour, so that `a` becomes `b`.

    Another case counts half, and so does - for a _. Source: Damerau 1964, as optimal string alignment.
    """
    if abs(len(a) - len(b)) > 8 or max(len(a), len(b)) > 200:
        return 99.0
    if (a == a.lower()) != (b == b.lower()):
        return max(distance(a.lower(), b.lower()), 0.5)
    before: list[float] = []
    row = [float(column) for column in range(len(b) + 1)]
    for i, x in enumerate(a, 1):
        before, last, row = row, before, [float(i)]
        for j, y in enumerate(b, 1):
            cost = 0.0 if x == y else 0.5 if {x, y} == {"-", "_"} else 1.0
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + cost)
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                best = min(best, last[j - 2] + 0.9)  # likelier than one letter too many
            row.append(best)
    return row[-1]


def either(words: Iterable[Any]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    *most, last = dict.fromkeys(map(str, words))
    return f"{', '.join(most)} or {last}" if most else last
