"""Weights of another's making: the file that holds them, and which of its names are a model's."""

from collections.abc import Iterable, Mapping
from dataclasses import field
from itertools import zip_longest
from pathlib import Path

from dtrain.spec.table import Frozen, Table, Wrong, empty, table
from dtrain.spec.words import dotted, show

MOST_PATTERNS = 1_000


@table
class WeightsFile(Table):
    """Safetensors files that a model's first weights come from, whoever wrote them."""

    # a .safetensors file; the .index.json of several; a folder that has one of either; or a file inside an
    # installed package, `package:folder/file.safetensors`
    path: Path
    # name in the file to name in the model, the first that fits: `*` is any text and is carried over, an
    # empty name leaves out what is in the file
    names: Frozen[str] = field(default_factory=empty)
    partial: bool = False  # whether the model may have names that the file lacks, and the file others
    checksum: str | None = None  # of what the files hold; dtrain notes it, so that no other is taken later

    def __post_init__(self) -> None:
        if len(self.names) > MOST_PATTERNS:
            raise Wrong("names", f"found {len(self.names):,} of them; at most {MOST_PATTERNS:,} would do")
        for pattern, name in self.names.items():
            found, wanted = name.count("*"), pattern.count("*")
            if name and found != wanted:
                said = f"{show(name)} has {found} *, and {show(pattern)} {wanted}; as many would do"
                raise Wrong(dotted(("names", pattern)), said)


def renamed(names: Iterable[str], patterns: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """What names become, "" of those that are left out; and the patterns by which none was renamed."""
    found: dict[str, str] = {}
    used = set()
    for name in names:
        found[name] = name
        for pattern, wanted in patterns.items():
            if (texts := captured(pattern, name)) is not None:
                used.add(pattern)
                found[name] = filled(wanted, texts) if wanted else ""
                break
    return found, [pattern for pattern in patterns if pattern not in used]


def captured(pattern: str, name: str) -> list[str] | None:
    """What stands for each * of a pattern in a name, the shortest text first; None if it does not fit."""
    first, *rest = pattern.split("*")
    if not rest:
        return [] if name == pattern else None
    *between, last = rest
    place, end = len(first), len(name) - len(last)
    if place > end or not name.startswith(first) or not name.endswith(last):
        return None
    texts = []
    for part in between:
        if (found := name.find(part, place, end)) < 0:
            return None
        texts.append(name[place:found])
        place = found + len(part)
    return [*texts, name[place:end]]


def filled(pattern: str, texts: Iterable[str]) -> str:
    """A pattern with these texts in place of its stars."""
    return "".join(part + text for part, text in zip_longest(pattern.split("*"), texts, fillvalue=""))
