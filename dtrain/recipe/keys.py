"""What the types of the recipe say of its keys: which tables have a key, and what may stand at a place."""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from dtrain.errors import RecipeError
from dtrain.recipe.document import has
from dtrain.recipe.values import Recipe
from dtrain.spec.axes import Axis
from dtrain.spec.decode import UnknownKey, fields_of, own_keys, split
from dtrain.spec.layers import Layer
from dtrain.spec.lengths import Span
from dtrain.spec.losses import Term
from dtrain.spec.metrics import Metric
from dtrain.spec.models import ModelSpec
from dtrain.spec.schedules import Part, RateSchedule
from dtrain.spec.sweep import Pruner
from dtrain.spec.table import Imported, OneOf, key_of
from dtrain.spec.weights import WeightsFile
from dtrain.spec.words import Place, either, placed
from dtrain.systems.composed import PhaseTable

TOP = ("extends", "layers")  # keys of a file that a resolved recipe has no more


@cache
def _owners() -> dict[str, str]:
    keys = dict.fromkeys(key for _, cls in tables() for key in fields_of(cls))
    return {key: _owners_of(key) for key in keys}


def owners(key: str) -> str:
    """The tables that have a key, in words; empty if none has."""
    return _owners().get(key, "")


def _owners_of(key: str) -> str:
    grouped: dict[str, dict[str, bool]] = {}
    for name, cls in tables():
        table, _, kind = name.partition("|")
        grouped.setdefault(table, {})[kind] = key in fields_of(cls)
    texts = []
    for table, kinds in grouped.items():
        having = [kind for kind, has_it in kinds.items() if has_it]
        if having:
            texts.append(table if len(having) == len(kinds) else f"{table} of kind {either(having)}")
    return either(texts) if texts else ""


def tables() -> Iterator[tuple[str, type]]:
    """Every table of a recipe: its name, with its kind behind a bar, and its class."""
    yield "the top of the recipe", Recipe
    for key, (target, _) in fields_of(Recipe).items():
        inner, notes = split(_without_none(target))
        name = f"[{key}]"
        if typing.get_origin(inner) is not None and "Mapping" in str(typing.get_origin(inner)):
            inner, notes = split(typing.get_args(inner)[-1])
            name = f"[{key}.NAME]"
        for note in notes:
            if isinstance(note, OneOf):
                yield from _family(name, note)
        is_family = any(isinstance(note, OneOf) for note in notes)
        if dataclasses.is_dataclass(inner) and isinstance(inner, type) and not is_family:
            yield name, inner
    yield from _family("a layer", OneOf(Layer))
    yield from _family("a schedule", OneOf(RateSchedule))
    yield "a part of a sequence", Part
    yield "a length", Span
    yield from _family("a metric", OneOf(Metric))
    yield "an axis", Axis
    yield from _family("a pruner", OneOf(Pruner))
    yield "[models.NAME]", ModelSpec
    yield "[models.NAME.weights]", WeightsFile
    yield "[[system.phases]]", PhaseTable
    yield "[...losses.NAME]", Term


def _family(name: str, family: OneOf) -> Iterator[tuple[str, type]]:
    for kind, cls in family.kinds.items():
        yield f"{name}|{kind}", cls


def _without_none(target: Any) -> Any:
    """`X` of `X | None`."""
    inner, notes = split(target)
    arms = [arm for arm in typing.get_args(inner) if arm is not type(None)]
    is_optional = type(None) in typing.get_args(inner)
    return arms[0] if is_optional and len(arms) == 1 and not notes else target


def takes_path(table: Any, place: Place) -> bool:
    """Whether a path may stand at a place of a recipe's table; arguments of imported data may be paths."""
    target: Any = Recipe
    for part in place:
        target = _inside(target, part, table)
        if target is Imported:
            return part != "kind" and place[0] in ("data", "evaluate")
        if target is None:
            return False
        if not has(table, (part,)):  # it stands in what a reference brings
            return False
        table = table[part]
    return Path in _arms(target)


def type_at(table: Any, place: Place) -> Any:
    """The type of what may stand at a place, where perhaps nothing stands; None where nothing may."""
    target: Any = Recipe
    for part in place[:-1]:
        target = _inside(target, part, table)
        if target is None or not has(table, (part,)):
            return None
        table = table[part]
    families = [note for note in split(_without_none(target))[1] if isinstance(note, OneOf)]
    if families and place[-1] == "kind":
        return Literal[tuple(families[0].kinds)] if families[0].kinds else None
    found = _inside(target, place[-1], table)
    return None if found is Imported else found


@cache
def vocabulary() -> frozenset[str]:
    """Every key of every table, and every kind."""
    words = {name.rpartition("|")[2] for name, _ in tables()}
    return frozenset(words | {key for _, cls in tables() for key in fields_of(cls)})


def is_of_shapes(mistake: RecipeError) -> bool:
    """Whether a mistake is a key of layers that stands elsewhere, so that no shape is as it was meant."""
    keys = {key for name, cls in tables() if name.startswith("a layer|") for key in fields_of(cls)}
    return isinstance(mistake, UnknownKey) and placed(mistake.key)[-1] in keys


def _inside(target: Any, part: int | str, table: Any) -> Any:
    """The type of one key or item of what has a type; None where there is no such key."""
    inner, notes = split(_without_none(target))
    for note in notes:
        if isinstance(note, OneOf) and isinstance(table, Mapping):
            kind = table.get("kind")
            if isinstance(kind, str) and ":" in kind and note.imported is not None:
                own = own_keys(note.imported)
                return own[str(part)][0] if part in own else Imported
            inner = note.kinds.get(str(kind)) or note.otherwise
    inner = next((arm for arm in arms_of(inner) if dataclasses.is_dataclass(arm)), inner)
    if dataclasses.is_dataclass(inner) and isinstance(inner, type):
        field = fields_of(inner).get(str(part))
        return None if field is None else field[0]
    arguments = [a for a in typing.get_args(inner) if a is not ...]
    return arguments[-1] if arguments else None


def _arms(target: Any) -> tuple[Any, ...]:
    """The types that a union is made of."""
    inner, _ = split(target)
    return (inner, *(split(arm)[0] for arm in typing.get_args(inner)))


def arms_of(target: Any) -> list[Any]:
    """The types that a union is made of, but for None; of anything else itself."""
    inner, notes = split(target)
    is_union = typing.get_origin(inner) in (typing.Union, types.UnionType) and not notes
    return [arm for arm in typing.get_args(inner) if arm is not type(None)] if is_union else [target]


def default_of(cls: Any, key: str) -> Any:
    """What a key of a table is when it is left out; None where it must be given, or where None it is."""
    (field,) = (field for field in dataclasses.fields(cls) if key_of(field.name) == key)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default
