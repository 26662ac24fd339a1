"""A table put together from several texts, which remembers which of them said each value."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from dtrain.errors import RecipeError, RecipeErrors, Spot
from dtrain.recipe.texts import Text
from dtrain.spec.trust import EVERYTHING, Trust
from dtrain.spec.words import Place, dotted, nearest, show

UNSET = "${unset}"


class Said(NamedTuple):
    """Where a value was said: the place in the table of one text."""

    text: Text
    place: Place
    through: "Said | None" = None  # who referred to it
    key: Place | None = None  # where its key was said, if not there

    def below(self, rest: Place) -> "Said":
        return self._replace(place=self.place + rest, key=None) if rest else self


class Sayings(dict[Place, Said]):
    """Who said what stands at a place; finds those below a place without a look at all."""

    def __init__(self, said: Mapping[Place, Said] = MappingProxyType({})):
        super().__init__()
        self._inside: dict[Place, dict[Place, None]] = {}  # places by each that is above them, and themselves
        for place, who in said.items():
            self[place] = who

    def __setitem__(self, place: Place, who: Said) -> None:
        super().__setitem__(place, who)
        for length in range(1, len(place) + 1):
            self._inside.setdefault(place[:length], {})[place] = None

    def __delitem__(self, place: Place) -> None:
        super().__delitem__(place)
        for length in range(1, len(place) + 1):
            del self._inside[place[:length]][place]

    def below(self, place: Place) -> list[Place]:
        """The places at a place and below it of which something is known."""
        return list(self._inside.get(place, ())) if place else list(self)


@dataclass
class Document:
    """The table of a recipe on its way to being one; `said` has an entry where the text changes."""

    table: dict[str, Any]
    said: Sayings = field(default_factory=Sayings)
    errors: list[RecipeError] = field(default_factory=list)
    trust: Trust = EVERYTHING

    @property
    def main(self) -> Text:
        """The recipe's own file."""
        return self.said[()].text

    def said_at(self, place: Place) -> Said:
        """Who said what stands at a place, or at the nearest one above it that stands there."""
        for length in range(len(place), -1, -1):
            if (said := self.said.get(place[:length])) is not None:
                return said.below(place[length:])
        raise KeyError(place)

    def graft(self, place: Place, source: "Document", at: Place, through: Said | None = None) -> None:
        """Note that what stands at `place` is what `source` has `at`."""
        taken = {place: source.said_at(at)}
        taken |= {place + p[len(at) :]: source.said[p] for p in source.said.below(at) if p != at}
        self.forget(place)
        for new, said in taken.items():
            self.said[new] = said if through is None else said._replace(through=through)

    def spot(self, place: Place, *, is_key: bool = False) -> Spot | None:
        """Where a key or its value was written."""
        said = self.said_at(place)
        return said.text.spot(said.place, is_key=is_key)

    def complain(self, place: Place, message: str, **options: Any) -> None:
        """Note a mistake at a place."""
        self.errors.append(RecipeError(dotted(place), message, **options))

    def merge(self, over: "Document", place: Place = ()) -> None:
        """Take up another document: its tables are merged into ours, all else takes the place of ours."""
        ours, theirs = at(self.table, place), at(over.table, place)
        self.errors += over.errors if not place else []
        for key, value in theirs.items():
            here = (*place, key)
            if value == UNSET:
                if key in ours:
                    del ours[key]
                    self.forget(here)
                else:
                    self._nothing_to_remove(over, here, ours)
            elif isinstance(value, dict) and isinstance(ours.get(key), dict):
                self.merge(over, here)
            elif _is_part_of_star(value, here, ours):
                self.copy_star(str(key))
                self.merge(over, here)
            else:
                ours[key] = value
                self.graft(here, over, here)

    def copy_star(self, name: str) -> None:
        """Give a model that the optimizer "*" serves one of its own, to set a part of it."""
        self.table["optimizers"][name] = copy.deepcopy(self.table["optimizers"]["*"])
        self.graft(("optimizers", name), self, ("optimizers", "*"))

    def forget(self, place: Place) -> None:
        """Drop what is known of a place that was removed."""
        for old in self.said.below(place):
            if old:
                del self.said[old]

    def _nothing_to_remove(self, over: "Document", place: Place, ours: dict[str, Any]) -> None:
        near = nearest(place[-1], ours)
        spot = over.spot(place)
        said = "there is nothing here to remove"
        self.errors.append(RecipeError(dotted(place), said, suggestion=near, spot=spot))

    def set(self, place: Place, value: Any, text: Text) -> None:
        """Set one value, which an argument of the command line gives."""
        node: Any = self.table
        named: Place = ()
        for depth, part in enumerate(place):
            here = dotted(place[: depth + 1])
            spot = text.spot(place[: depth + 1], is_key=True)
            key: Any = part
            if isinstance(node, list):
                if not isinstance(part, int) or part >= len(node):
                    there = f"there is no such item; the array has {len(node)}, counted from 0"
                    raise RecipeErrors([RecipeError(here, there, spot=spot)], text.name)
            elif isinstance(node, dict):
                key = str(part)
            else:
                said = f"{show(node)} is no table, so {here} cannot be set"
                spot = text.spot(place[:depth], is_key=True)
                raise RecipeErrors([RecipeError(dotted(place[:depth]), said, spot=spot)], text.name)
            named = (*named, key)
            if depth == len(place) - 1:
                self._put(node, value, named, text)
            else:
                if isinstance(node, dict) and key not in node:
                    node[key] = {}
                    self.said[named] = Said(text, place[: depth + 1])
                node = node[key]

    def _put(self, node: Any, value: Any, place: Place, text: Text) -> None:
        key: Any = place[-1]
        self.forget(place)
        if value != UNSET:
            node[key] = value
            self.said[place] = Said(text, place)
        elif isinstance(node, dict) and key in node:
            del node[key]
        else:
            near = nearest(key, node) if isinstance(node, dict) else None
            said = "there is nothing here to remove"
            self.complain(place, said, suggestion=near, spot=text.spot(place, is_key=True))


def _is_part_of_star(value: Any, place: Place, ours: dict[str, Any]) -> bool:
    """Whether a table has a part of an optimizer, of which "*" says the rest."""
    is_optimizer = len(place) == 2 and place[0] == "optimizers" and place[1] != "*"
    return (
        is_optimizer and isinstance(value, dict) and "kind" not in value and isinstance(ours.get("*"), dict)
    )


def at(table: Any, place: Place) -> Any:
    """What stands at a place."""
    for part in place:
        table = table[part]
    return table


def has(table: Any, place: Place) -> bool:
    """Whether anything stands at a place."""
    for part in place:
        is_item = isinstance(table, list | tuple) and isinstance(part, int) and part < len(table)
        if not is_item and not (isinstance(table, dict) and part in table):
            return False
        table = table[part]
    return True


def copied(document: Document) -> Document:
    """A document of its own, for what would change it."""
    said, errors = Sayings(document.said), list(document.errors)
    return Document(copy.deepcopy(document.table), said, errors, document.trust)
