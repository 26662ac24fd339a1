"""What must agree between the tables of a recipe, found before anything is built."""

from collections.abc import Iterator

from dtrain.errors import RecipeError
from dtrain.recipe.decode import nearest
from dtrain.recipe.values import Recipe
from dtrain.spec.blocks import LayerError
from dtrain.spec.models import ModelSpec
from dtrain.spec.table import Imported


def mistakes(recipe: Recipe) -> Iterator[RecipeError]:
    """Every contradiction of a recipe whose tables are well formed one by one."""
    yield from _batches(recipe)
    yield from _names(recipe)
    misfits = list(_shapes(recipe))
    yield from misfits
    if not misfits and not isinstance(recipe.system, Imported):
        yield from _system(recipe)


def _batches(recipe: Recipe) -> Iterator[RecipeError]:
    size, micro = recipe.train.batch_size, recipe.train.micro
    if size % micro:
        yield RecipeError("train.batch_size", f"{size} is not a multiple of train.micro_batch_size ({micro})")


def _names(recipe: Recipe) -> Iterator[RecipeError]:
    there = ", ".join(recipe.models)
    for table, names in (("optimizers", recipe.optimizers), ("averages", recipe.averages)):
        for name in names:
            if name not in recipe.models:
                yield RecipeError(
                    f"{table}.{name}",
                    f"there is no such model; models are {there}{nearest(name, recipe.models)}",
                )
    best = recipe.checkpoint.best
    if best is not None and not best.startswith("evaluate/"):
        yield RecipeError(
            "checkpoint.best", f'"{best}" is not a metric of evaluation, such as "evaluate/loss"'
        )


def _shapes(recipe: Recipe) -> Iterator[RecipeError]:
    for name, model in recipe.models.items():
        if not isinstance(model, ModelSpec):
            continue
        try:
            model.rows()
        except LayerError as error:
            yield RecipeError(f"models.{name}.{error.at}", str(error))


def _system(recipe: Recipe) -> Iterator[RecipeError]:
    try:
        recipe.system.check(recipe.models)
    except ValueError as error:
        yield RecipeError("system", str(error))
        return
    trained = [name for phase in recipe.system.phases() for name in phase.updates]
    for name in dict.fromkeys(trained):
        if name not in recipe.models:
            yield RecipeError(f"models.{name}", "the system trains it, but the recipe has no such model")
        elif name not in recipe.optimizers:
            yield RecipeError(f"optimizers.{name}", "the system trains this model, but it has no optimizer")
    for name in recipe.optimizers:
        model = recipe.models.get(name)
        if isinstance(model, ModelSpec) and not model.parameter_count():
            yield RecipeError(f"models.{name}", "has nothing to train, but has an optimizer")
    for table, names in (("optimizers", recipe.optimizers), ("averages", recipe.averages)):
        for name in names:
            if name in recipe.models and name not in trained:
                yield RecipeError(f"{table}.{name}", "no phase of the system trains this model")
