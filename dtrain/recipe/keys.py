"""Which keys a table may have: read off the types of the recipe, for the near miss in an error."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from dtrain.spec.models import ModelSpec, decode_model
from dtrain.spec.table import KINDS, Decoded, OneOf


def known_keys(cls: type, place: tuple[int | str, ...], table: Any) -> list[str]:
    """The keys of the table at `place` inside `table`, which decodes as `cls`; none if it is free."""
    target: Any = cls
    for part in place:
        target = _inside(target, part, table)
        table = table[part]
    target = _concrete(target, table)
    if not dataclasses.is_dataclass(target):
        return []
    names = [field.name for field in dataclasses.fields(target)]
    return ["kind", *names] if getattr(target, "kind", "") else names


def _inside(target: Any, part: int | str, table: Any) -> Any:
    """The type of the item `part` of a value of type `target`."""
    target = _concrete(target, table)
    if dataclasses.is_dataclass(target):
        return typing.get_type_hints(target, include_extras=True).get(str(part))
    arguments = [a for a in typing.get_args(target) if a is not type(None)]
    if typing.get_origin(target) is tuple:
        return arguments[0]
    return arguments[-1] if arguments else None


def _concrete(target: Any, table: Any) -> Any:
    """The dataclass or container that a type stands for, given the table that is decoded."""
    while typing.get_origin(target) is not None:
        if typing.get_origin(target) in (tuple, Mapping, typing.get_origin(Mapping[str, int])):
            return target
        arguments = typing.get_args(target)
        decoder = next((a for a in arguments[1:] if isinstance(a, Decoded)), None)
        if isinstance(decoder, OneOf):
            return KINDS[decoder.base].get(str(table.get("kind"))) if isinstance(table, Mapping) else None
        if decoder is not None and decoder.function is decode_model:
            return ModelSpec
        target = next((a for a in arguments if a is not type(None)), None)
    return target
