"""dtrain trains systems of several models from one TOML recipe.

    recipe = dtrain.load("recipes/gan.toml", ["train.steps=100"])
    with dtrain.setup(recipe) as run:
        for event in dtrain.train(run):
            print(event)
    models = dtrain.load_models(run.folder / "checkpoints" / "step-00000100")

Names are imported when they are first used, so that `import dtrain` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dtrain.checkpoint.models import load_models
    from dtrain.checkpoint.runs import RunRecord, load_run
    from dtrain.errors import (
        CheckpointError,
        DataError,
        DivergedError,
        DtrainError,
        LaunchError,
        RecipeError,
        RecipeErrors,
    )
    from dtrain.loop import train
    from dtrain.recipe.load import load
    from dtrain.recipe.values import Recipe
    from dtrain.run import Run, setup, watch
    from dtrain.systems.base import Evaluation, Loss, Phase, System
    from dtrain.systems.ops import Ops

HOMES = {
    "load_models": "dtrain.checkpoint.models",
    **dict.fromkeys(("RunRecord", "load_run"), "dtrain.checkpoint.runs"),
    "load": "dtrain.recipe.load",
    "Recipe": "dtrain.recipe.values",
    "Run": "dtrain.run",
    "setup": "dtrain.run",
    "watch": "dtrain.run",
    "train": "dtrain.loop",
    **dict.fromkeys(("Evaluation", "Loss", "Phase", "System"), "dtrain.systems.base"),
    "Ops": "dtrain.systems.ops",
    **dict.fromkeys(
        (
            "CheckpointError",
            "DataError",
            "DivergedError",
            "DtrainError",
            "LaunchError",
            "RecipeError",
            "RecipeErrors",
        ),
        "dtrain.errors",
    ),
}

__all__ = [
    "CheckpointError",
    "DataError",
    "DivergedError",
    "DtrainError",
    "Evaluation",
    "LaunchError",
    "Loss",
    "Ops",
    "Phase",
    "Recipe",
    "RecipeError",
    "RecipeErrors",
    "Run",
    "RunRecord",
    "System",
    "load",
    "load_models",
    "load_run",
    "setup",
    "train",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'dtrain' has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)
