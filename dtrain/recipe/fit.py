"""Whether a recipe fits its data and the number of processes."""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dtrain.data.opening import describe
from dtrain.data.source import Description, Field, Source
from dtrain.errors import DtrainError, RecipeError, RecipeErrors
from dtrain.format.addresses import unfit_for_copies
from dtrain.recipe.check import as_recipe_error, fit, unfit_schedules
from dtrain.recipe.document import Document, at
from dtrain.recipe.imports import missing_modules
from dtrain.recipe.locate import located
from dtrain.recipe.mend import mended
from dtrain.recipe.plan import pace_of
from dtrain.recipe.texts import near_path
from dtrain.recipe.values import Recipe
from dtrain.spec.blocks import LayerError
from dtrain.spec.decode import fields_of
from dtrain.spec.layers import BatchNorm, ImportedLayer
from dtrain.spec.lengths import Pace
from dtrain.spec.metrics import Metric
from dtrain.spec.models import Model, ModelSpec
from dtrain.spec.sequence import Embedding
from dtrain.spec.table import Imported
from dtrain.spec.words import dotted, nearest, placed
from dtrain.systems.base import System


def check_data(recipe: Recipe, document: Document, processes: int) -> Description | None:
    """Raise RecipeErrors unless the data is there and fits; what it is, where it is not imported.

    Reads names and headers alone. Raises DataError if these cannot be read.
    """
    values = vars(recipe)
    errors = [*outside(values, document), *missing_files(values, document), *missing_modules(values)]
    if errors := [*errors, *_unfit_copies(recipe)]:
        raise located(document, errors)
    data = None if isinstance(recipe.data, Imported) else describe(recipe.data, "train", recipe.seed)
    evaluation = recipe.evaluate.data or recipe.data
    parts = [("data", data)]
    if recipe.every.evaluate and not isinstance(evaluation, Imported):
        where = "evaluate.data" if recipe.evaluate.data else "data"
        parts.append((where, describe(evaluation, "evaluate", recipe.seed)))

    def problems(models: Mapping[str, Model], system: Any) -> list[RecipeError]:
        fields = [e for key, part in parts if part for e in field_problems(models, system, part.fields, key)]
        return [*fit(models, system), *fields]

    errors = mended(recipe.models, recipe.system, problems, document)
    examples = recipe.train.batch_size if data is None else data.count
    errors += share_problems(recipe, examples, processes)
    if data is not None:
        errors += unfit_schedules(values, pace_of(recipe.train, recipe.system, data.count))
    if errors:
        raise located(document, errors)
    return data


def misfits(values: Mapping[str, Any], document: Document) -> list[RecipeError]:
    """Every place where two shapes do not agree; of two that differ the data says which is wrong."""
    models, system, data = values.get("models", {}), values.get("system"), values.get("data")
    named = document.table.get("models", {})
    if not isinstance(named, dict) or models.keys() != named.keys():
        return []  # of a model that is not good nobody can say what fits
    if not list(fit(models, system)):
        return []
    fields: Mapping[str, Field] = {}
    if isinstance(data, Source) and not [*outside(values, document), *missing_files(values, document)]:
        with suppress(DtrainError):
            fields = describe(data, "train", 0).fields

    def problems(models: Mapping[str, Model], system: Any) -> list[RecipeError]:
        return [*fit(models, system), *(field_problems(models, system, fields, "data") if fields else ())]

    return mended(models, system, problems, document)


def outside(values: Mapping[str, Any], document: Document) -> Iterator[RecipeError]:
    """Every path of a stranger's recipe that leads out of its folder, but for those of the command line."""
    for key, path in data_paths(values):
        if is_outside(key, path, document):
            said = (
                f"{path} lies outside of the recipe's folder, and it is not trusted; give it as an argument"
            )
            yield RecipeError(key, f"{said}: {key}=PATH")
        elif (link := _link_outside(path, document)) is not None:
            yield RecipeError(key, f"{link} leads out of the recipe's folder, and it is not trusted")
    key, copies = "checkpoint.path", getattr(values.get("checkpoint"), "path", None)
    if copies is not None and is_outside(key, copies, document):
        said = f"{copies} lies outside of the recipe's folder, and it is not trusted; give it as an argument"
        yield RecipeError(key, f"{said}: {key}=PATH")


def _unfit_copies(recipe: Recipe) -> Iterator[RecipeError]:
    """Of a place for copies, what a look at it tells; what only writing tells is said by a run."""
    if (where := recipe.checkpoint.path) is None:
        return
    said, known = unfit_for_copies(where)
    if said:
        scheme, _, rest = str(where).partition(":")
        near = nearest(scheme, known)
        yield RecipeError("checkpoint.path", said, suggestion=near and f"{near}:{rest}")


def is_outside(key: str, path: Path | str, document: Document) -> bool:
    """Whether a path that a stranger's recipe has under a key, or a URL, leads out of its folder."""
    text, folder = document.said_at(placed(key)).text, document.main.folder.resolve()
    is_users_own = not text.is_file or not text.folder.resolve().is_relative_to(folder)  # --set-file
    if document.trust.everything or is_users_own:
        return False
    return isinstance(path, str) or not path.resolve().is_relative_to(folder)


def _link_outside(path: Path, document: Document) -> Path | None:
    """A link in a stranger's folder of pictures that leads elsewhere."""
    if document.trust.everything or not path.is_dir():
        return None
    home = document.main.folder.resolve()
    for folder, folders, files in os.walk(path):
        for link in (Path(folder, name) for name in (*folders, *files)):
            if link.is_symlink() and not link.resolve().is_relative_to(home):
                return link
    return None


def data_paths(values: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """The paths of built-in sources and of metrics, under their keys."""
    evaluate = values.get("evaluate")
    tables = {"data": values.get("data"), "evaluate.data": getattr(evaluate, "data", None)}
    for name, metric in getattr(evaluate, "metrics", {}).items():
        tables[dotted(("evaluate", "metrics", name))] = metric
    for key, table in tables.items():
        for name in fields_of(type(table)) if isinstance(table, Source | Metric) else ():
            path = getattr(table, name)
            if isinstance(path, Path):
                yield f"{key}.{name}", path


def missing_files(values: Mapping[str, Any], document: Document) -> Iterator[RecipeError]:
    """Every path of the data that leads nowhere, with one that is there and near; not those outside."""
    for key, path in data_paths(values):
        if not is_outside(key, path, document):
            yield from _absent(key, path, document)


def _absent(key: str, path: Path, document: Document) -> Iterator[RecipeError]:
    if not os.path.exists(path):
        written = str(at(document.table, placed(key)))
        yield RecipeError(key, f"{path} does not exist", suggestion=near_path(path, written))
    elif not path.is_file() and not path.is_dir():  # a pipe or a device may have no end
        yield RecipeError(key, f"{path} is neither a file nor a folder")


def check_evaluation(recipe: Recipe, document: Document) -> None:
    """Raise RecipeErrors unless what an evaluation of a checkpoint reads is there; training data need not be.

    It may lie anywhere, even for a recipe that is not trusted: nothing of it is shown but the metrics.
    """
    values = {"evaluate": recipe.evaluate} | ({} if recipe.evaluate.data else {"data": recipe.data})
    errors = [error for key, path in data_paths(values) for error in _absent(key, path, document)]
    if errors := [*errors, *missing_modules(values)]:
        raise located(document, errors)


def check_fields(recipe: Recipe, fields: Mapping[str, Field]) -> None:
    """Raise RecipeErrors unless the data has what the system reads, in the shapes and types that it takes."""
    if errors := list(field_problems(recipe.models, recipe.system, fields, "data")):
        raise RecipeErrors(errors, recipe.name)


def field_problems(
    models: Mapping[str, Model], system: Any, fields: Mapping[str, Field], key: str
) -> Iterator[RecipeError]:
    """What the data under `key` lacks of what the system reads, or has in another shape or type."""
    if not isinstance(system, System):
        return
    absent = [name for name in system.reads() if name not in fields]
    for name in absent:
        there = ", ".join(fields)
        said = next((key for key in fields_of(type(system)) if getattr(system, key) == name), None)
        where = key if said is None else f"system.{said}"
        near = nearest(name, fields)
        yield RecipeError(where, f'the data has no field "{name}"; it has {there}', suggestion=near)
    for name, model in system.reads().items():
        spec = models.get(model) if model else None
        if name not in fields or not isinstance(spec, ModelSpec):
            continue
        field = fields[name]
        if spec.input != field.shape:
            said = f"is {list(spec.input)}, but the data's {name} is {list(field.shape)}"
            yield RecipeError(f"models.{model}.input", said)
        elif not field.holds_fractions and not isinstance(spec.layers[0], Embedding | ImportedLayer):
            yield RecipeError(
                key,
                f'the field "{name}" holds whole numbers, but models.{model} takes fractions; '
                "store it as floats, or pictures as 8-bit (height, width)",
            )
    try:
        found = [] if absent else list(system.check_data(models, fields) or ())
    except ValueError as error:
        found = [error]
    for one in found:
        if not isinstance(one, LayerError):  # said of the model itself
            yield as_recipe_error(one, key)


def check_shares(recipe: Recipe, examples: int, processes: int) -> None:
    """Raise RecipeErrors if batches do not fit the examples, or leave processes without work."""
    if errors := list(share_problems(recipe, examples, processes)):
        raise RecipeErrors(errors, recipe.name)


def check_schedules(recipe: Recipe, pace: Pace) -> None:
    """Raise RecipeErrors unless the lengths of schedules fit the run."""
    if errors := list(unfit_schedules(vars(recipe), pace)):
        raise RecipeErrors(errors, recipe.name)


def share_problems(recipe: Recipe, examples: int, processes: int) -> Iterator[RecipeError]:
    """What of the batches does not fit the examples, or leaves processes without work."""
    batch, micro = recipe.train.batch_size, recipe.train.micro
    if batch > examples:
        yield RecipeError("train.batch_size", f"{batch} is more than the {examples} examples of the data")
    if processes > batch:
        yield RecipeError("train.batch_size", f"{batch} examples cannot be shared by {processes} processes")
    elif processes > batch // micro:
        sizes = range(1, batch // processes + 1)
        fitting = max(size for size in sizes if batch % size == 0)
        yield RecipeError(
            "train.micro_batch_size",
            f"a batch of {batch} in micro-batches of {micro} leaves some of {processes} processes without "
            f"work; set it to {fitting} or less",
        )
    if recipe.train.lanes is not None and recipe.train.lanes % processes:
        most = max(batch // micro // processes * processes, processes)
        said = f"{recipe.train.lanes} cannot be shared evenly by {processes} processes"
        yield RecipeError("train.lanes", f"{said}; {most} would do")
    if examples % batch % micro == 1 or micro == 1:
        for name, model in recipe.models.items():
            if _needs_company(model):
                yield RecipeError(
                    "train.micro_batch_size",
                    f"{micro} leaves a micro-batch of one example, which the batch_norm of models.{name} "
                    "cannot normalise; choose another size, or a group_norm",
                )


def _needs_company(model: Model) -> bool:
    """Whether a batch normalisation sees one value a channel in each example."""
    if not isinstance(model, ModelSpec):
        return False
    return any(isinstance(row.layer, BatchNorm) and math.prod(row.before[1:]) == 1 for row in model.rows())
