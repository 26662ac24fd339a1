"""Ready models out of a checkpoint, without its run."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from dtrain.backends.torch_backend import build_model, outlined
from dtrain.backends.torch_weights import named_tensors, restore_tensors, tensors_of
from dtrain.checkpoint.read import Checkpoint, newest_of
from dtrain.checkpoint.verify import check_fits
from dtrain.errors import CheckpointError, RecipeError
from dtrain.recipe.load import from_checkpoint
from dtrain.recipe.values import Recipe
from dtrain.spec.models import Model, ModelSpec, without_beginning
from dtrain.spec.trust import Trust


def load_models(
    path: str | Path, *, averages: bool = True, trust: Sequence[str] = (), verify: bool | None = None
) -> dict[str, nn.Module]:
    """Build the models of a checkpoint, or of a run's newest one, on the CPU in evaluation mode.

    Of runs/NAME the newest run that has a checkpoint is meant. `path` may be a URL of fsspec's (s3://...),
    from which files are copied into a cache. `averages` takes the average of a model where there is one, and
    of `swa` its statistics. A model or layer given by an import path is imported only from torch.nn and the
    packages in `trust`; a function that makes a model is trusted by its full name, `package.module:function`.
    `verify` says whether the hashes of all tensors are checked; left out, they are where there is at most a
    GB of them. Raises CheckpointError naming the file that is missing or altered, and RecipeError where a
    model cannot be had.
    """
    trusted = Trust(names=(trust,) if isinstance(trust, str) else tuple(trust))
    checkpoint = newest_of(path, hashes=verify)
    recipe = from_checkpoint(checkpoint.recipe, folder=checkpoint.path, trust=trusted)
    return models_of(checkpoint, recipe, trusted, averages=averages)


def models_of(
    checkpoint: Checkpoint, recipe: Recipe, trusted: Trust, *, averages: bool = True, only: str | None = None
) -> dict[str, nn.Module]:
    """The same for a checkpoint that was opened, with its recipe; of one model `only`, where it is named."""
    check_fits(checkpoint, recipe)
    weights = tensors_of(checkpoint, "models")
    if averages:
        weights |= tensors_of(checkpoint, "averages")
    models = {}
    for name, spec in recipe.models.items():
        if only not in (None, name):
            continue
        given = {key.partition("/")[2]: value for key, value in weights.items() if key.startswith(f"{name}/")}
        bare = without_beginning(spec)
        held = sum(value.numel() for value in given.values())
        if (needed := _count(name, bare, recipe.seed, trusted)) > held:  # before memory is asked for
            said = f"{needed:,} weights, and the checkpoint holds {held:,} numbers of it"
            raise CheckpointError(f"{checkpoint.path}: models.{name} has {said}")
        module = build_model(name, bare, seed=recipe.seed, trust=trusted)
        module.to(torch.float64 if recipe.train.precision == "fp64" else torch.float32)  # as it was trained
        try:
            restore_tensors({name: named_tensors(module)}, {name: given})
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint.path}: {error}") from None
        models[name] = module.eval().requires_grad_(False)
    return models


def _count(name: str, spec: Model, seed: int, trust: Trust) -> int:
    """How many weights a model has, found without memory for them; 0 where only building it can tell."""
    if isinstance(spec, ModelSpec) and not spec.imports_layers:
        return spec.parameter_count()
    # What others wrote is built once alone: it may keep tensors, such as these here, for the next time.
    if trust.names or trust.everything:
        return 0
    try:
        with torch.device("meta"):
            module = outlined(name, spec, seed=seed, trust=trust)
    except RecipeError:  # of one that cannot be had at all, too, which is told when it is built
        return 0
    return sum(weight.numel() for weight in module.parameters())
