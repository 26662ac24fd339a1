"""What must agree between the tables of a recipe, found before anything is built."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from dtrain.errors import RecipeError
from dtrain.recipe.check_metrics import best, clashes, compared, measured, monitors
from dtrain.recipe.mend import roundness
from dtrain.recipe.parts import Parts
from dtrain.spec.averages import StochasticAverage
from dtrain.spec.blocks import LayerError, shape_after
from dtrain.spec.lengths import Pace
from dtrain.spec.misfits import misfits
from dtrain.spec.models import Model, ModelSpec
from dtrain.spec.schedules import RateSchedule
from dtrain.spec.table import Wrong, key_of
from dtrain.spec.words import Place, dotted, nearest
from dtrain.systems.base import System
from dtrain.systems.composed import Composed

MOST_WEIGHTS = 10**12


def mistakes(parts: Parts, spread: Collection[str] = ()) -> Iterator[RecipeError]:
    """Every contradiction between the tables that are well formed one by one.

    The optimizers of the models `spread` are "*", which is for those of them that are trained.
    """
    yield from _batches(parts.values.get("train"))
    yield from _precisions(parts)
    system = parts.values.get("system")
    metrics = measured(system, parts)
    yield from best(parts, system, metrics)
    yield from compared(parts, system, metrics)
    yield from clashes(parts, system)
    yield from monitors(parts, metrics)
    if not isinstance(system, System):
        yield from _names(parts, {})
        return
    needed = system.needs()
    if not isinstance(system, Composed):
        yield from _idle_losses(parts, system)
    absent = {name: _misspelt(name, parts, needed) for name in needed if name not in parts.names("models")}
    for name, wrong in absent.items():
        yield _missing_model(system, name, wrong, parts)
    yield from _names(parts, absent)
    yield from _trained(parts, system, {*spread, *absent.values()})
    if getattr(parts.values.get("evaluate"), "metrics", None) and not system.predicts:
        said = f"the {system.kind or type(system).__name__} has no predictions to measure"
        yield RecipeError("evaluate.metrics", said, is_key=True)


def fit(models: Mapping[str, Model], system: Any) -> Iterator[RecipeError]:
    """Every place where two shapes do not agree."""
    misfits = list(_shapes(models))
    yield from misfits
    if not misfits and isinstance(system, System) and set(system.needs()) <= models.keys():
        try:
            found = list(system.check(models) or ())
        except ValueError as error:
            found = [error]
        for one in found:
            yield as_recipe_error(one, "system")


def as_recipe_error(error: ValueError, key: str) -> RecipeError:
    """What a table says is wrong, under the key that it names, or else under `key`."""
    if not isinstance(error, Wrong):
        return RecipeError(key, str(error))
    return RecipeError(
        error.at, str(error), is_key=error.is_key, suggestion=error.suggestion, within=error.within
    )


def _idle_losses(parts: Parts, system: System) -> Iterator[RecipeError]:
    """Losses of models that the system does not ask for."""
    for name, model in parts.values.get("models", {}).items():
        if getattr(model, "losses", None):
            said = f"the {system.kind or type(system).__name__} has losses of its own"
            said += '; system.kind = "composed" takes those of models'
            yield RecipeError(f"{dotted(('models', name))}.losses", said, is_key=True)


def _batches(train: Any) -> Iterator[RecipeError]:
    if train is None:
        return
    size, micro = train.batch_size, train.micro
    if not size % micro:
        if train.lanes is not None and train.lanes > size // micro:
            said = f"found {train.lanes}, but an update has {size // micro} micro-batch"
            said += f"{'es' * (size > micro)} (train.micro_batch_size is {micro}); {size // micro} would do"
            yield RecipeError("train.lanes", said)
        return
    if roundness(micro) < roundness(size) or micro > size:
        fitting = max(n for n in range(1, min(micro, size) + 1) if size % n == 0)
        said = f"{micro} does not divide train.batch_size ({size}); {fitting} would"
        yield RecipeError("train.micro_batch_size", said)
    else:
        below, above = size - size % micro, size - size % micro + micro
        near = f"{below} or {above}" if below else above
        yield RecipeError(
            "train.batch_size",
            f"{size} is not a multiple of train.micro_batch_size ({micro}); {near} would do",
        )


def _precisions(parts: Parts) -> Iterator[RecipeError]:
    """Models that cannot compute in another precision than the run."""
    whole = {
        "tf32": 'sets how the GPU multiplies at all, for every model; "bf16" would do there, or "fp32"',
        "fp64": 'keeps all weights in fp64; "fp32" would do there',
    }
    found = getattr(parts.values.get("train"), "precision", None)
    for name, model in parts.values.get("models", {}).items():
        if getattr(model, "precision", None) is not None and found in whole:
            said = f'train.precision = "{found}" {whole[found]}, or leave this out'
            yield RecipeError(f"{dotted(('models', name))}.precision", said, is_key=True)


def _misspelt(name: str, parts: Parts, needed: Sequence[str]) -> str | None:
    """The model of the recipe that was meant to be the one that the system needs."""
    return nearest(name, [model for model in parts.names("models") if model not in needed])


def _missing_model(system: System, name: str, wrong: str | None, parts: Parts) -> RecipeError:
    kind = system.kind or type(system).__name__
    if wrong is not None:
        said = f'the {kind} has no use for this model, but needs "{name}"'
        return RecipeError(f"models.{wrong}", said, is_key=True, suggestion=name)
    there = ", ".join(parts.names("models")) or "none"
    return RecipeError(f"models.{name}", f"required by the {kind}, but missing; models are {there}")


def _names(parts: Parts, absent: Mapping[str, str | None]) -> Iterator[RecipeError]:
    """Optimizers and averages of models that are not there."""
    models = parts.names("models")
    there = ", ".join(models) or "none"
    for table in ("optimizers", "averages"):
        names = parts.names(table)
        for name in names:
            if name in models or name in absent or (name == "*" and table == "optimizers"):
                continue
            near = nearest(name, models, first=[model for model in models if model not in names])
            said = f"there is no such model; models are {there}"
            yield RecipeError(dotted((table, name)), said, is_key=True, suggestion=near)


def _shapes(models: Mapping[str, Model]) -> Iterator[RecipeError]:
    for name, model in models.items():
        if not isinstance(model, ModelSpec):
            continue
        try:
            shape_after(model.layers, model.input)
            if (weights := model.parameter_count()) > MOST_WEIGHTS:
                said = f"has {weights:,} weights; no machine holds more than {MOST_WEIGHTS:,}"
                yield RecipeError(dotted(("models", name)), said)
        except LayerError as error:
            yield RecipeError(f"{dotted(('models', name))}.{error.at}", str(error))


def _trained(parts: Parts, system: System, others: Collection[str | None]) -> Iterator[RecipeError]:
    """Models without optimizers, and the reverse; of some others an optimizer is no mistake."""
    trained = list(dict.fromkeys(name for names in system.trains() for name in names))
    own, optimizers = parts.table.get("models"), parts.names("optimizers")
    models = list(own) if isinstance(own, dict) else []
    misspelt = {nearest(name, models) for name in optimizers if name not in models}
    for name in trained:
        if name in models and name not in optimizers and name not in misspelt and "optimizers" in parts.table:
            yield RecipeError(f"optimizers.{name}", "the system trains this model, but it has no optimizer")
    for name in optimizers:
        model = parts.values.get("models", {}).get(name)
        if isinstance(model, ModelSpec) and not _counts(model) and name in trained:
            yield RecipeError(f"models.{name}", "has nothing to train, but has an optimizer", is_key=True)
    for table in ("optimizers", "averages"):
        for name in parts.names(table):
            if name in models and name not in trained and name not in others:
                yield RecipeError(f"{table}.{name}", "no phase of the system trains this model", is_key=True)


def _counts(model: ModelSpec) -> bool:
    """Whether a model has anything to train; one whose shapes do not fit is taken to have."""
    try:
        return bool(model.parameter_count()) or model.imports_layers
    except ValueError:
        return True


def unfit_schedules(tables: Mapping[str, Any], pace: Pace | None) -> Iterator[RecipeError]:
    """Lengths of schedules, and beginnings of averages, that do not fit the run.

    Of a run without a pace only the data can tell.
    """
    if pace is None:
        return
    for key in ("system", "models", "optimizers"):
        for place, schedule in _schedules(tables.get(key), (key,)):
            for wrong in misfits(schedule, pace):
                yield RecipeError(f"{dotted(place)}.{wrong.at}", str(wrong))
    for name, average in tables.get("averages", {}).items():
        if isinstance(average, StochasticAverage) and average.start >= pace.total:
            said = f"found {average.start}, but the whole run has {pace.total} steps; less would do"
            yield RecipeError(f"{dotted(('averages', name))}.start", said)


def _schedules(value: Any, place: Place) -> Iterator[tuple[Place, RateSchedule]]:
    """Every schedule in a table: of a learning rate, or of the weight of a loss."""
    if isinstance(value, RateSchedule):
        yield place, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _schedules(item, (*place, key))
    elif isinstance(value, tuple):
        for number, item in enumerate(value):
            yield from _schedules(item, (*place, number))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _schedules(getattr(value, field.name), (*place, key_of(field.name)))
