"""The import paths of a recipe: whether each may be imported, and whether it is what its place needs."""

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dtrain.data.dataset import Reading
from dtrain.errors import RecipeError
from dtrain.spec.arguments import argument_problems, callables, nested, parameters_of, taken
from dtrain.spec.blocks import Block
from dtrain.spec.decode import BROKEN, decode, own_keys
from dtrain.spec.imports import Role, derives, find, missing_file
from dtrain.spec.layers import ImportedLayer, Layer
from dtrain.spec.models import ModelSpec
from dtrain.spec.optimizers import ImportedGroup, ImportedOptimizer
from dtrain.spec.rates import ImportedSchedule, monitor_problem
from dtrain.spec.table import Imported, key_of
from dtrain.spec.trust import EVERYTHING, ImportPathError, Trust, parse
from dtrain.spec.words import Place, dotted
from dtrain.systems.base import Phase, System

Tables = Mapping[str, Any]  # of a recipe by key, as far as they were decoded: vars(recipe), or some of it
AnyImported = Imported | ImportedLayer | ImportedOptimizer | ImportedSchedule
SUPPLIED: dict[Role, tuple[int, tuple[str, ...]]] = {  # what dtrain gives by position and by name
    "optimizer": (1, ("lr",)),
    "schedule": (0, ("optimizer",)),
}


@dataclass(frozen=True)
class Named:
    """Something that a recipe names by an import path, and what for."""

    place: Place  # of its table
    value: AnyImported
    role: Role


def named(tables: Tables) -> Iterator[Named]:
    """Everything that a recipe names by an import path, but for what is among arguments."""
    yield from _in_system(tables.get("system"))
    for name, model in tables.get("models", {}).items():
        if isinstance(model, ModelSpec):
            yield from _in_layers(model.layers, ("models", name, "layers"))
        else:
            yield Named(("models", name), model, "model")
    for name, optimizer in tables.get("optimizers", {}).items():
        if isinstance(optimizer, ImportedOptimizer):
            yield Named(("optimizers", name), optimizer, "optimizer")
        if isinstance(optimizer.schedule, ImportedSchedule):
            yield Named(("optimizers", name, "schedule"), optimizer.schedule, "schedule")
    evaluate = tables.get("evaluate")
    for place, data in (
        (("data",), tables.get("data")),
        (("evaluate", "data"), getattr(evaluate, "data", None)),
    ):
        if isinstance(data, Imported):
            yield Named(place, data, "source")
    for name, metric in getattr(evaluate, "metrics", {}).items():
        if isinstance(metric, Imported):
            yield Named(("evaluate", "metrics", name), metric, "metric")


def check_trust(tables: Tables, trust: Trust = EVERYTHING) -> Iterator[RecipeError]:
    """Every import path that is none, or may not be imported; nothing is imported."""
    for place, path in _paths(tables):
        try:
            refusal = trust.refusal(parse(path))
        except ImportPathError as error:
            yield _at_kind(place, error)
        else:
            if refusal is not None:
                yield RecipeError(dotted((*place, "kind")), refusal)


def missing_modules(tables: Tables) -> Iterator[RecipeError]:
    """Every local file that is to be imported and is not there."""
    for place, path in _paths(tables):
        with suppress(ImportPathError):
            if problem := missing_file(parse(path)):
                yield _at_kind(place, problem)


def check_imports(tables: Tables, trust: Trust = EVERYTHING) -> tuple[Any, list[RecipeError]]:
    """Import everything that a recipe names, and compare arguments with signatures; nothing is called.

    Returns the system, decoded if it is a user's own (as it was, where that fails), and every mistake.
    """
    system: Any = tables.get("system")
    errors: list[RecipeError] = []
    if isinstance(system, Imported):
        system, errors = _own_system(system, trust)
        for each in _in_system(system):
            errors += _problems(each, trust) if each.role != "system" else []
    for each in named(tables):
        if each.role != "system":
            errors += _problems(each, trust)
    return system, errors


def _paths(tables: Tables) -> Iterator[tuple[Place, str]]:
    """Every import path, those among arguments too, and the place of its table."""
    for each in named(tables):
        yield each.place, each.value.path
        for place, path, _ in nested(each.value.arguments, each.place):
            yield place, path


def _in_system(system: Any) -> Iterator[Named]:
    if isinstance(system, Imported):
        yield Named(("system",), system, "system")
    elif dataclasses.is_dataclass(system):
        for field in dataclasses.fields(system):
            yield from _losses(getattr(system, field.name), ("system", key_of(field.name)))


def _losses(value: Any, place: Place) -> Iterator[Named]:
    if isinstance(value, Imported):
        yield Named(place, value, "loss")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _losses(item, (*place, key))
    elif isinstance(value, tuple):
        for number, item in enumerate(value):
            yield from _losses(item, (*place, number))


def _in_layers(layers: tuple[Layer, ...], place: Place) -> Iterator[Named]:
    for number, layer in enumerate(layers):
        if isinstance(layer, ImportedLayer):
            yield Named((*place, number), layer, "layer")
        elif isinstance(layer, Block):
            yield from _in_layers(layer.layers, (*place, number, "layers"))


def _at_kind(place: Place, error: ImportPathError) -> RecipeError:
    return RecipeError(dotted((*place, "kind")), error.message, suggestion=error.suggestion)


def _own_system(system: Imported, trust: Trust) -> tuple[Any, list[RecipeError]]:
    try:
        cls = find(system.path, "system", trust)
    except ImportPathError as error:
        return system, [_at_kind(("system",), error)]
    decoded, errors = _decode(cls, system, ("system",))
    if decoded is BROKEN:
        return system, errors
    problem = _phases_problem(decoded)
    if problem is not None:
        said = f"{system.path!r}: {problem}; phases() returns one or more dtrain.Phase"
        return system, [RecipeError("system.kind", said)]
    return decoded, errors


def _phases_problem(system: System) -> str | None:
    """What is wrong with the phases of a user's own system."""
    try:
        phases = list(system.phases())
    except Exception as error:  # the class is the user's
        return f"phases() failed: {type(error).__name__}: {error}"
    wrong = next((phase for phase in phases if not isinstance(phase, Phase)), None)
    return None if phases and wrong is None else f"phases() gives {wrong!r}" if phases else "it has no phases"


def _decode(cls: type, imported: Imported, place: Place) -> tuple[Any, list[RecipeError]]:
    """A user's own table of a family: a system or a source."""
    has_own_keys = inspect.get_annotations(cls) and "__dataclass_fields__" not in vars(cls)
    if has_own_keys or not dataclasses.is_dataclass(cls):
        said = f"{imported.path!r} has no keys yet: write @dataclass(frozen=True) above the class"
        return BROKEN, [RecipeError(dotted((*place, "kind")), said)]
    return decode(cls, imported.arguments, place)


def _problems(each: Named, trust: Trust) -> list[RecipeError]:
    """What is wrong with one import path and its arguments."""
    try:
        found = find(each.value.path, each.role, trust)
    except ImportPathError as error:
        return [_at_kind(each.place, error)]
    if each.role == "source":
        return _of_source(each, found, trust)
    positions, supplied = SUPPLIED.get(each.role, (0, ()))
    if each.role in ("loss", "metric") and not isinstance(found, type):
        positions = 2  # prediction and target
    own = own_keys(type(each.value))
    arguments = each.value.arguments
    errors = argument_problems(found, arguments, supplied, positions=positions, place=each.place, known=own)
    if each.role in ("loss", "metric") and arguments.get("reduction") == "sum":
        said = "a sum depends on how many examples there are; a mean over them would do"
        errors.append(RecipeError(dotted((*each.place, "reduction")), said))
    if isinstance(each.value, ImportedOptimizer):
        errors += _of_groups(each.value, found, each.place)
    if isinstance(each.value, ImportedSchedule):
        parameters = list(parameters_of(found.step) or {})
        takes_metric = any(name not in ("self", "epoch") for name in parameters)
        if problem := monitor_problem(each.value.path, each.value.monitor, takes_metric=takes_metric):
            where = dotted((*each.place, "monitor"))
            errors.append(RecipeError(where, problem, is_key=each.value.monitor is not None))
    return errors + _of_parts(found, arguments, each, trust)


def _of_groups(optimizer: ImportedOptimizer, found: Any, place: Place) -> list[RecipeError]:
    """Settings of groups of parameters that are no arguments of the optimizer."""
    errors: list[RecipeError] = []
    for number, group in enumerate(optimizer.groups):
        where = (*place, "groups", number)
        said = {name: (*where, name) for name in group.arguments}
        about = argument_problems(
            found,
            {**optimizer.arguments, **group.arguments},
            SUPPLIED["optimizer"][1],
            positions=1,
            elsewhere=said,
            known=own_keys(ImportedGroup),
        )
        errors += [error for error in about if error.key in map(dotted, said.values())]
    return errors


def _of_parts(found: Any, arguments: Mapping[str, Any], each: Named, trust: Trust) -> list[RecipeError]:
    """The same of what is named among the arguments."""
    errors = _of_callables(found, arguments, each.place, trust)
    supplied = dict.fromkeys(SUPPLIED.get(each.role, (0, ()))[1])
    for place, path, inside in nested(arguments, each.place):
        try:
            inner = find(path, "part", trust)
        except ImportPathError as error:
            errors.append(_at_kind(place, error))
            continue
        errors += argument_problems(inner, inside, taken(inner, each.role, supplied), place=place)
        errors += _of_callables(inner, inside, place, trust)
    return errors


def _of_callables(found: Any, arguments: Mapping[str, Any], place: Place, trust: Trust) -> list[RecipeError]:
    errors = []
    for where, path in callables(found, arguments, place):
        try:
            find(path, "function", trust)
        except ImportPathError as error:
            errors.append(RecipeError(dotted(where), error.message, suggestion=error.suggestion))
    return errors


def _of_source(each: Named, found: Any, trust: Trust) -> list[RecipeError]:
    """A user's own source is decoded; a dataset has arguments for both parts, and some for each alone."""
    assert isinstance(each.value, Imported)
    if derives(found, "dtrain.data.source:Source"):
        return _decode(found, each.value, each.place)[1]
    arguments = {name: value for name, value in each.value.arguments.items() if name != "examples"}
    where = (*each.place, "examples")
    reading, errors = decode(Reading, each.value.arguments.get("examples", {}), where)
    if reading is BROKEN:
        return errors
    parts = {"train": reading.train, "evaluate": reading.evaluate}
    if each.place != ("data",):
        del parts["train"]
    for part, more in parts.items():
        if more is not None:
            elsewhere = {name: (*where, part, name) for name in more}
            errors += argument_problems(
                found, arguments, place=each.place, elsewhere=elsewhere, known=["examples"]
            )
            errors += _of_callables(found, more, (*where, part), trust)
    return errors + _of_parts(found, each.value.arguments, each, trust)
