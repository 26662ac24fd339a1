"""Specs as torch optimizers."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dtrain.backends import torch_lion
from dtrain.errors import RecipeError
from dtrain.spec.arguments import call_found
from dtrain.spec.imports import find
from dtrain.spec.optimizers import (
    SGD,
    Adafactor,
    Adam,
    AdamW,
    ImportedOptimizer,
    Lion,
    Optimizer,
    RMSprop,
)
from dtrain.spec.trust import EVERYTHING, ImportPathError, Trust

CLASSES: dict[type[Optimizer], Callable[..., torch.optim.Optimizer]] = {
    SGD: torch.optim.SGD,
    Adam: torch.optim.Adam,
    AdamW: torch.optim.AdamW,
    RMSprop: torch.optim.RMSprop,
    Adafactor: torch.optim.Adafactor,
    Lion: torch_lion.Lion,
}
FUSIBLE = (SGD, Adam, AdamW)
FUSED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMMON = {"lr", "clip", "clip_value", "schedule"}


def build_optimizer(
    name: str, spec: Optimizer, parameters: Mapping[str, Tensor], *, trust: Trust = EVERYTHING
) -> torch.optim.Optimizer:
    """Build the optimizer of a model from its named parameters, fused where torch has it.

    Raises RecipeError if an imported one cannot be had, or cannot train these parameters, or there are none.
    """
    own = list(parameters.values())
    if not own:
        raise RecipeError(f"models.{name}", "has nothing to train, but has an optimizer", is_key=True)
    if isinstance(spec, ImportedOptimizer):
        return _import(name, spec, parameters, trust)
    options = _options(spec)
    if isinstance(spec, FUSIBLE):
        options["fused"] = all(p.dtype in FUSED and p.device.type in ("cpu", "cuda") for p in own)
    return CLASSES[type(spec)](own, lr=spec.lr, **options)


def _options(spec: Optimizer) -> dict[str, Any]:
    """What torch's class takes besides the learning rate."""
    options = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec) if f.name not in COMMON}
    if isinstance(spec, Adafactor):
        options["eps"] = (options.pop("eps1"), options.pop("eps2"))
    return options


def _import(
    name: str, spec: ImportedOptimizer, parameters: Mapping[str, Tensor], trust: Trust
) -> torch.optim.Optimizer:
    try:
        found = find(spec.path, "optimizer", trust)
    except ImportPathError as error:
        said = error.message
        raise RecipeError(f"optimizers.{name}.kind", said, suggestion=error.suggestion) from error
    if reason := _refusal(found, parameters):
        raise RecipeError(f"optimizers.{name}.kind", f"{spec.path} {reason}")
    try:
        made: torch.optim.Optimizer = call_found(
            found, spec.arguments, "optimizer", trust, list(parameters.values()), lr=spec.lr
        )
    except Exception as error:  # the class is the user's
        raise RecipeError(f"optimizers.{name}", f"{spec.path}: {error}") from error
    return made


def _refusal(cls: type[torch.optim.Optimizer], parameters: Mapping[str, Tensor]) -> str:
    """Why an optimizer cannot train these parameters; "" if it can, for all one can tell."""
    needed = [p.name for p in inspect.signature(cls.step).parameters.values() if p.default is p.empty]
    if "closure" in needed:
        return "evaluates the loss again inside a step, and dtrain evaluates it once; adam would do"
    if issubclass(cls, torch.optim.Muon):
        for name, parameter in parameters.items():
            if parameter.ndim != 2:
                shape = list(parameter.shape)
                return f"trains matrices alone, and the model's {name} is {shape}; adamw would do"
    return ""
