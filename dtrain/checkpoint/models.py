"""Ready models out of a checkpoint, without its run."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from dtrain.backends.torch_backend import build_model
from dtrain.backends.torch_weights import named_tensors, restore_tensors, tensors_of
from dtrain.checkpoint.read import Checkpoint, newest_of
from dtrain.errors import CheckpointError
from dtrain.recipe.load import from_checkpoint
from dtrain.recipe.values import Recipe
from dtrain.spec.models import ModelSpec, without_beginning
from dtrain.spec.trust import Trust


def load_models(
    path: str | Path, *, averages: bool = True, trust: Sequence[str] = ()
) -> dict[str, nn.Module]:
    """Build the models of a checkpoint, or of a run's newest one, on the CPU in evaluation mode.

    `averages` takes the average of a model where there is one, and of `swa` its statistics. A model or layer
    given by an import path is imported only from torch.nn and the packages in `trust`; a function that makes
    a model is trusted by its full name, `package.module:function`. Raises CheckpointError naming the file
    that is missing or altered, and RecipeError where a model cannot be had.
    """
    trusted = Trust(names=(trust,) if isinstance(trust, str) else tuple(trust))
    checkpoint = newest_of(Path(path))
    recipe = from_checkpoint(checkpoint.recipe, folder=checkpoint.path, trust=trusted)
    return models_of(checkpoint, recipe, trusted, averages=averages)


def models_of(
    checkpoint: Checkpoint, recipe: Recipe, trusted: Trust, *, averages: bool = True, only: str | None = None
) -> dict[str, nn.Module]:
    """The same for a checkpoint that was opened, with its recipe; of one model `only`, where it is named."""
    weights = tensors_of(checkpoint, "models")
    if averages:
        weights |= tensors_of(checkpoint, "averages")
    models = {}
    for name, spec in recipe.models.items():
        if only not in (None, name):
            continue
        given = {key.partition("/")[2]: value for key, value in weights.items() if key.startswith(f"{name}/")}
        held = sum(value.numel() for value in given.values())
        if isinstance(spec, ModelSpec) and spec.parameter_count() > held:  # before memory is asked for
            needed = f"{spec.parameter_count():,} weights, and the checkpoint holds {held:,} numbers of it"
            raise CheckpointError(f"{checkpoint.path}: models.{name} has {needed}")
        module = build_model(name, without_beginning(spec), seed=recipe.seed, trust=trusted)
        if recipe.train.precision == "fp64":
            module.double()
        try:
            restore_tensors({name: named_tensors(module)}, {name: given})
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint.path}: {error}") from None
        models[name] = module.eval().requires_grad_(False)
    return models
