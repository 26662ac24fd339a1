"""What every table of a recipe is: a frozen dataclass, decoded strictly, in one of several kinds.

A family of kinds is an abstract base (`Layer`, `Optimizer`, ...) whose subclasses are registered
under short names; a recipe may also give an import path, `package.module:Name`. What may stand in a
field is its annotation: `Annotated[int, Within(above=0)]`. `spec.decode` reads tables by them.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, TypeVar, dataclass_transform

T = TypeVar("T")
V = TypeVar("V")


@dataclasses.dataclass(frozen=True)
class Within:
    """Bounds of a number."""

    above: float = -math.inf
    at_least: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf

    def problem(self, value: float) -> str | None:
        """What would do in place of a number outside the bounds; None of one inside."""
        if self.above < value < self.below and self.at_least <= value <= self.at_most:
            return None
        low = f"above {self.above:g}" if self.above > -math.inf else f"at least {self.at_least:g}"
        high = f"below {self.below:g}" if self.below < math.inf else f"at most {self.at_most:g}"
        limits = [text for text in (low, high) if "inf" not in text]
        return f"a number {' and '.join(limits)} would do"


@dataclasses.dataclass(frozen=True)
class Matching:
    """What a string must look like: a regular expression, and the same in words."""

    pattern: str
    words: str


@dataclasses.dataclass(frozen=True)
class Checked:
    """A further demand on a value, which `function` checks: it returns the value or raises ValueError."""

    function: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class AtLeastOne:
    """An array may not be empty."""


def _few(sides: tuple[int, ...]) -> tuple[int, ...]:
    if len(sides) > MOST_AXES:
        raise ValueError(f"found {len(sides)} numbers; at most {MOST_AXES} would do")
    return sides


MOST_AXES = 8  # of what goes through a model, the batch axis left out
Positive = Annotated[int, Within(above=0)]
Sides = Annotated[tuple[Positive, ...], AtLeastOne(), Checked(_few)]
Natural = Annotated[int, Within(at_least=0)]
Fraction = Annotated[float, Within(at_least=0, at_most=1)]
BelowOne = Annotated[float, Within(at_least=0, below=1)]
Rate = Annotated[float, Within(at_least=0)]
Above0 = Annotated[float, Within(above=0)]
Finite = float  # every number of a recipe is
Name = Annotated[
    str,
    Matching(
        r"[A-Za-z0-9][A-Za-z0-9._-]*", "letters, digits, dots, dashes and underscores, not first a dot,"
    ),
]  # of what becomes a folder
Frozen = Mapping[str, V]  # decoded as a table that nobody can change

KINDS: dict[type, dict[str, type]] = {}


class Table:
    """Base of every table: unknown keys and loose types are refused when it is decoded."""

    kind: ClassVar[str] = ""
    made_of: ClassVar[tuple[type, ...]] = ()  # of a table that is made, not written: whose keys it has


def key_of(field: str) -> str:
    """The key of a table's field: its name, less the `_` of one that Python has another use for."""
    return field.removesuffix("_")


class Wrong(ValueError):
    """Two values do not agree; `at` is the key to mend, dotted, from where the error is caught.

    Raised by a table's `__post_init__` or `check`, where a plain ValueError would name the whole table.
    `within` is the first character of a string that is wrong, from 0, and how many are.
    """

    def __init__(
        self,
        at: str,
        message: str,
        *,
        is_key: bool = False,
        suggestion: str | None = None,
        within: tuple[int, int] | None = None,
    ):
        super().__init__(message)
        self.at = at
        self.is_key = is_key
        self.suggestion = suggestion
        self.within = within


def empty() -> Mapping[str, Any]:
    """A table with nothing in it, unchangeable as all are."""
    return MappingProxyType({})


def freeze(value: Any) -> Any:
    """The same tables and arrays, unchangeable all the way down."""
    if isinstance(value, Mapping):
        return MappingProxyType({key: freeze(item) for key, item in value.items()})
    return tuple(freeze(item) for item in value) if isinstance(value, list | tuple) else value


@dataclass_transform(frozen_default=True, kw_only_default=True)
def table(cls: type[T]) -> type[T]:
    """Make a table of a recipe out of a class: its annotated fields are the keys."""
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def kind(base: type, name: str) -> Callable[[type[T]], type[T]]:
    """Register a table as the `kind = name` variant of the family `base`."""

    def register(cls: type[T]) -> type[T]:
        made = table(cls)
        made.kind = name  # type: ignore[attr-defined]  # every family derives from Table
        KINDS.setdefault(base, {})[name] = made
        return made

    return register


@table
class Imported:
    """A kind given by its import path, with the arguments it is to be called with.

    It is only looked up when it is built, so that reading a recipe runs none of its code.
    """

    path: str  # "package.module:Name", or "./file.py:Name" beside the recipe
    arguments: Mapping[str, Any]


@table
class Open(Table):
    """A table whose other keys are arguments of what an import path names."""

    arguments: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ByOwner:
    """Annotates a field whose type depends on the class that it is a field of: `function` gives it."""

    function: Callable[[type], Any]


class OneOf:
    """Annotates a field that holds one of the kinds of a family, told apart by its key `kind`.

    An import path becomes an `imported`, if there may be one; its fields but `path` and `arguments` are keys
    of ours among the arguments. A table without `kind` is an `otherwise`, where there is one. Kinds that
    many know and that are `refused` have a reason each, in small letters.
    """

    def __init__(
        self,
        base: type,
        imported: type | None = Imported,
        otherwise: type | None = None,
        refused: Mapping[str, str] = MappingProxyType({}),
    ):
        self.base = base
        self.imported = imported
        self.otherwise = otherwise
        self.refused = refused

    @property
    def kinds(self) -> dict[str, type]:
        """The kinds by name; those of a family inside it too."""
        families = (kinds for base, kinds in KINDS.items() if issubclass(base, self.base))
        return {name: cls for kinds in families for name, cls in kinds.items()}
