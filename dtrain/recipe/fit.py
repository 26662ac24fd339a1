"""Whether a recipe fits its data and the number of processes."""

import math

from dtrain.data.source import Examples
from dtrain.errors import RecipeError
from dtrain.recipe.values import Recipe
from dtrain.spec.layers import BatchNorm, Embedding
from dtrain.spec.models import Model, ModelSpec
from dtrain.spec.table import Imported


def check_fields(recipe: Recipe, examples: Examples) -> None:
    """Raise RecipeError unless the data has what the system reads, in the shapes and types that it takes."""
    if isinstance(recipe.system, Imported):
        return
    for name, model in recipe.system.reads().items():
        if name not in examples.fields:
            there = ", ".join(examples.fields)
            raise RecipeError("data", f'the system reads the field "{name}"; the data has {there}')
        spec = recipe.models[model] if model else None
        if not isinstance(spec, ModelSpec):
            continue
        field = examples.fields[name]
        if spec.input != field.shape:
            raise RecipeError(
                f"models.{model}.input",
                f"is {list(spec.input)}, but the data's {name} is {list(field.shape)}",
            )
        if field.dtype.kind != "f" and not isinstance(spec.layers[0], Embedding):
            raise RecipeError(
                "data",
                f'the field "{name}" holds whole numbers, but models.{model} takes fractions; '
                "store it as floats, or pictures as 8-bit (height, width)",
            )
    try:
        recipe.system.check_data(recipe.models, examples.fields)
    except ValueError as error:
        raise RecipeError("data", str(error)) from None


def check_shares(recipe: Recipe, examples: int, processes: int) -> None:
    """Raise RecipeError if batches do not fit the examples, or leave processes without work."""
    batch, micro = recipe.train.batch_size, recipe.train.micro
    if batch > examples:
        raise RecipeError("train.batch_size", f"{batch} is more than the {examples} examples of the data")
    if processes > batch:
        raise RecipeError("train.batch_size", f"{batch} examples cannot be shared by {processes} processes")
    if processes > batch // micro:
        sizes = range(1, batch // processes + 1)
        fitting = max(size for size in sizes if batch % size == 0)
        raise RecipeError(
            "train.micro_batch_size",
            f"a batch of {batch} in micro-batches of {micro} leaves some of {processes} processes without "
            f"work; set it to {fitting} or less",
        )
    if examples % batch % micro == 1 or micro == 1:
        for name, model in recipe.models.items():
            if _needs_company(model):
                raise RecipeError(
                    "train.micro_batch_size",
                    f"{micro} leaves a micro-batch of one example, which the batch_norm of models.{name} "
                    "cannot normalise; choose another size, or a group_norm",
                )


def _needs_company(model: Model) -> bool:
    """Whether a batch normalisation sees one value a channel in each example."""
    if not isinstance(model, ModelSpec):
        return False
    return any(isinstance(row.layer, BatchNorm) and math.prod(row.before[1:]) == 1 for row in model.rows())
