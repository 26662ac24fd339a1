"""Losses and metrics given by an import path: functions of predictions and targets."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from dtrain.errors import RecipeError
from dtrain.spec.arguments import call_found, prepared
from dtrain.spec.imports import find
from dtrain.spec.table import Imported
from dtrain.spec.trust import ImportPathError, Trust

Measure = Callable[[Tensor, Tensor], Tensor]


def build_measure(
    imported: Imported,
    device: torch.device,
    dtype: torch.dtype,
    *,
    at: str,
    trust: Trust,
    role: Literal["loss", "metric"] = "loss",
) -> Measure:
    """A module built with its arguments, or a function that is given them after prediction and target.

    Raises RecipeError, naming the key `at`, if it cannot be had, or would have to be trained.
    """
    try:
        found = find(imported.path, role, trust)
        if not isinstance(found, type):
            return partial(found, **prepared(found, imported.arguments, role, trust))
        module: nn.Module = call_found(found, imported.arguments, role, trust)
    except ImportPathError as error:
        raise RecipeError(f"{at}.kind", error.message, suggestion=error.suggestion) from error
    except Exception as error:  # the class is the user's
        raise RecipeError(at, f"{imported.path}: {error}") from error
    trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    if trained:
        said = f"{imported.path} has weights of its own ({', '.join(trained[:3])}), and nothing trains them"
        raise RecipeError(f"{at}.kind", f"{said}; they belong into a model")
    return module.to(device, dtype).eval()


def measured(measure: Measure, imported: Imported, prediction: Tensor, target: Tensor, *, at: str) -> Tensor:
    """What a loss or a metric makes of a micro-batch. Raises RecipeError unless it is one number."""
    try:
        value = torch.as_tensor(measure(prediction, target), device=prediction.device)
    except Exception as error:  # the function is the user's
        shapes = f"{list(prediction.shape)} and {list(target.shape)}"
        raise RecipeError(at, f"{imported.path} failed with arrays of {shapes}: {error}") from error
    if value.ndim:
        said = f"{imported.path} gives an array of {list(value.shape)}"
        raise RecipeError(at, f"{said}; the mean over the examples would do, as one number")
    return value
