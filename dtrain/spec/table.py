"""What every table of a recipe is: a frozen dataclass, decoded strictly, in one of several kinds.

A family of kinds is an abstract base (`Layer`, `Optimizer`, ...) whose subclasses are registered
under short names; a recipe may also give an import path, `package.module:Name`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, TypeVar, dataclass_transform

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, TypeAdapter
from pydantic import ValidationError as InvalidTable
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

T = TypeVar("T")
V = TypeVar("V")

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
File = Annotated[Path, BeforeValidator(lambda value: Path(value) if isinstance(value, str) else value)]
Frozen = Annotated[Mapping[str, V], AfterValidator(lambda table: freeze(table))]

KINDS: dict[type, dict[str, type]] = {}


class Table:
    """Base of every table: unknown keys and loose types are refused when it is decoded."""

    kind: ClassVar[str] = ""
    __pydantic_config__ = ConfigDict(extra="forbid")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _make_strict(schema)
        return schema


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

    path: str  # "package.module:Name"
    arguments: Mapping[str, Any]


class Decoded:
    """Annotates a field with the function that decodes it; it is called when a value is there."""

    def __init__(self, function: Callable[[Any], Any]):
        self.function = function

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.function)


class OneOf(Decoded):
    """Annotates a field that holds one of the kinds of a family, told apart by its key `kind`."""

    def __init__(self, base: type[Table], imported: Callable[[str, Mapping[str, Any]], Any] | None = None):
        super().__init__(self.decode)
        self.base = base
        self.imported = imported or (lambda path, arguments: Imported(path=path, arguments=arguments))

    def decode(self, value: Any) -> Any:
        """Decode a table by its `kind`; an import path becomes what `imported` makes of it."""
        if isinstance(value, self.base | Imported):
            return value
        if not isinstance(value, Mapping):
            raise PydanticCustomError("table_type", "a table with a `kind` is needed here")
        if "kind" not in value:
            raise invalid(
                "kind", "missing_kind", f"missing; one of {', '.join(sorted(KINDS[self.base]))}", value
            )
        name = value["kind"]
        arguments = {key: item for key, item in value.items() if key != "kind"}
        if isinstance(name, str) and ":" in name:
            return self.imported(name, arguments)
        if not isinstance(name, str) or name not in KINDS[self.base]:
            raise invalid("kind", "unknown_kind", "unknown kind", name, known=sorted(KINDS[self.base]))
        return adapter(KINDS[self.base][name]).validate_python(arguments)


@cache
def adapter(cls: Any) -> TypeAdapter[Any]:
    """The decoder of a table; made when it is first needed, as it costs milliseconds."""
    return TypeAdapter(cls)


def invalid(key: str, error: str, message: str, found: Any, known: list[str] | None = None) -> InvalidTable:
    """The error of one key, in pydantic's form, so that it joins the others of its table."""
    context = {"known": known} if known else None
    custom = PydanticCustomError(error, message, context)
    return InvalidTable.from_exception_data("table", [InitErrorDetails(type=custom, loc=(key,), input=found)])


def _make_strict(schema: Any) -> None:
    """Refuse "1" for an integer and true for a number, yet take arrays for tuples."""
    if isinstance(schema, dict):
        if schema.get("type") in ("int", "float", "str", "bool"):
            schema["strict"] = True
        for value in schema.values():
            _make_strict(value)
    elif isinstance(schema, list | tuple):
        for value in schema:
            _make_strict(value)
