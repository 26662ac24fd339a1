"""A model of a checkpoint as a folder that its library's `from_pretrained` opens."""

from pathlib import Path
from typing import Any, Literal

from torch import nn

from dtrain.backends.torch_cast import FLOATS, converted
from dtrain.checkpoint.convert import NAMES, Weights, tell_source
from dtrain.checkpoint.models import models_of
from dtrain.errors import CheckpointError
from dtrain.format.checkpoints import Checkpoint
from dtrain.recipe.load import from_checkpoint
from dtrain.spec.trust import Trust

Library = Literal["transformers", "diffusers"]
LIBRARIES: tuple[Library, ...] = ("transformers", "diffusers")
SAVE = "save_pretrained"


def write_pretrained(
    checkpoint: Checkpoint,
    weights: Weights,
    folder: Path,
    *,
    library: Library,
    shard_bytes: int,
    trust: Trust,
) -> None:
    """Build a model and let its library write it, its configuration and its weights.

    Raises CheckpointError if its class is not the library's, and RecipeError where the model cannot be had.
    """
    for located in weights.tensors.values():  # as saved, before any of it is built
        located.read()
    recipe = from_checkpoint(checkpoint.recipe, folder=checkpoint.path, trust=trust)
    averages = weights.source["weights"] == "average"
    name = weights.model
    module: Any = models_of(checkpoint, recipe, trust, averages=averages, only=name)[name]
    check_library(module, name, library)
    if weights.dtype is not None:
        dtype = FLOATS[NAMES[weights.dtype]]
        for key, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                converted(key, tensor, dtype)
        nn.Module.to(module, dtype)  # not by diffusers' own, which warns of it
    try:
        module.save_pretrained(folder, max_shard_size=shard_bytes)
    except Exception as error:  # the class may be the user's
        raise CheckpointError(f"models.{name} cannot be saved: {type(error).__name__}: {error}") from error
    for path in folder.glob("*.safetensors"):
        tell_source(path, weights.source)


def check_library(module: nn.Module, name: str, library: Library) -> None:
    """Raise CheckpointError unless a module is of a class that the library opens."""
    savers = {base.__module__.partition(".")[0] for base in type(module).__mro__ if SAVE in vars(base)}
    if library in savers:
        return
    kind = type(module).__name__
    other = next((each for each in LIBRARIES if each in savers), None)
    if other is not None:
        raise CheckpointError(f"models.{name} is a {kind}, which {other} opens; --to {other} would do")
    would = "without --to its weights are written as they are, under plain names"
    raise CheckpointError(
        f"models.{name} is a {kind}, which has no {SAVE}, so {library} cannot open it; {would}"
    )
