"""Whether a recipe fits its data and the number of processes."""

from dtrain.data.source import Examples
from dtrain.errors import RecipeError
from dtrain.recipe.values import Recipe
from dtrain.spec.models import input_of
from dtrain.spec.table import Imported


def check_fields(recipe: Recipe, examples: Examples) -> None:
    """Raise RecipeError unless the data has what the system reads, in the shapes that its models take."""
    if isinstance(recipe.system, Imported):
        return
    for name, model in recipe.system.reads().items():
        if name not in examples.fields:
            there = ", ".join(examples.fields)
            raise RecipeError("data", f'the system reads the field "{name}"; the data has {there}')
        shape = input_of(recipe.models[model]) if model else None
        if shape is not None and shape != examples.fields[name].shape:
            found = list(examples.fields[name].shape)
            raise RecipeError(f"models.{model}.input", f"is {list(shape)}, but the data's {name} is {found}")


def check_shares(recipe: Recipe, examples: int, processes: int) -> None:
    """Raise RecipeError if a batch has fewer micro-batches than there are processes."""
    batch = min(recipe.train.batch_size, examples)
    if processes > -(-batch // recipe.train.micro):
        sizes = range(1, max(batch // processes, 1) + 1)
        fitting = max(size for size in sizes if recipe.train.batch_size % size == 0)
        raise RecipeError(
            "train.micro_batch_size",
            f"a batch of {batch} in micro-batches of {recipe.train.micro} leaves some of {processes} "
            f"processes without work; set it to {fitting} or less",
        )
