"""Specs as torch optimizers."""

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dtrain.backends.torch_lion import Lion
from dtrain.backends.torch_together import Together
from dtrain.errors import RecipeError
from dtrain.spec import optimizers as specs
from dtrain.spec.arguments import call_found
from dtrain.spec.groups import Share, Trainable, problems, shares
from dtrain.spec.imports import find
from dtrain.spec.optimizers import COMMON, ImportedOptimizer, Optimizer, given
from dtrain.spec.trust import EVERYTHING, ImportPathError, Trust

CLASSES: dict[type[Optimizer], Callable[..., torch.optim.Optimizer]] = {
    specs.SGD: torch.optim.SGD,
    specs.Adam: torch.optim.Adam,
    specs.AdamW: torch.optim.AdamW,
    specs.RMSprop: torch.optim.RMSprop,
    specs.Adafactor: torch.optim.Adafactor,
    specs.Lion: Lion,
    specs.Muon: torch.optim.Muon,
}
FUSED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OWN = "own"  # in a group of parameters: the settings that are its own, of which a schedule moves the lr alone


def build_optimizer(
    name: str,
    spec: Optimizer,
    parameters: Mapping[str, Tensor],
    *,
    embeddings: Collection[str] = (),
    form: specs.Form = "auto",
    trust: Trust = EVERYTHING,
) -> torch.optim.Optimizer:
    """Build the optimizer of a model from its named parameters, some of them `embeddings`.

    `form` is how it steps, one of those that it has; by itself, fused where torch has it. Of several groups
    it is in the order of `spec.groups.shares`.

    Raises RecipeError if an imported one cannot be had, or cannot train these parameters, if there are none,
    or if its groups do not fit them.
    """
    assert isinstance(spec, specs.FORMS[form])
    if not parameters:
        raise RecipeError(f"models.{name}", "has nothing to train, but has an optimizer", is_key=True)
    model = Trainable({key: tuple(each.shape) for key, each in parameters.items()}, frozenset(embeddings))
    for problem in problems(spec, model):
        raise RecipeError(f"optimizers.{name}.{problem.at}", str(problem))
    parts = shares(spec, model)
    if isinstance(spec, ImportedOptimizer):
        return _import(name, spec, parts, parameters, trust)
    if isinstance(spec, specs.Muon):
        halves = [
            [part for part in parts if isinstance(part.optimizer, each)] for each in (specs.Muon, specs.AdamW)
        ]
        return Together([_build(half, parameters, form) for half in halves if half])
    return _build(parts, parameters, form)


def _build(
    parts: Sequence[Share], parameters: Mapping[str, Tensor], form: specs.Form
) -> torch.optim.Optimizer:
    """One optimizer of torch's for shares of one kind."""
    spec = parts[0].optimizer
    options = _options(spec)
    if form == "auto" and isinstance(spec, specs.FUSIBLE):
        own = [parameters[name] for part in parts for name in part.names]
        options["fused"] = all(p.dtype in FUSED and p.device.type in ("cpu", "cuda") for p in own)
    elif form == "fused":
        options["fused"] = True
    elif form != "auto" and isinstance(spec, specs.WITH_FOREACH):
        options["foreach"] = form == "foreach"
    groups = [_group(part, parameters, _options(part.optimizer)) for part in parts]
    return CLASSES[type(spec)](groups, **options)


def _group(part: Share, parameters: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A share as torch's optimizers take it."""
    own = {OWN: tuple("eps" if key in ("eps1", "eps2") else key for key in part.own)} if part.own else {}
    return {"params": [parameters[name] for name in part.names], **own, **settings}


def _options(spec: Optimizer) -> dict[str, Any]:
    """The settings of a kind, as torch's class takes them."""
    left_out = {*COMMON, "others"} - {"lr"}
    options = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec) if f.name not in left_out}
    if isinstance(spec, specs.Adafactor):
        options["eps"] = (options.pop("eps1"), options.pop("eps2"))
    return options


def _import(
    name: str, spec: ImportedOptimizer, parts: Sequence[Share], parameters: Mapping[str, Tensor], trust: Trust
) -> torch.optim.Optimizer:
    try:
        found = find(spec.path, "optimizer", trust)
    except ImportPathError as error:
        raise RecipeError(f"optimizers.{name}.kind", error.message, suggestion=error.suggestion) from error
    if reason := _refusal(found, parameters):
        raise RecipeError(f"optimizers.{name}.kind", f"{spec.path} {reason}")
    own: list[Any] = list(parameters.values())
    if spec.groups:
        said = [{} if part.group is None else given(spec.groups[part.group]) for part in parts]
        own = [_group(part, parameters, settings) for part, settings in zip(parts, said, strict=True)]
    try:
        made: torch.optim.Optimizer = call_found(found, spec.arguments, "optimizer", trust, own, lr=spec.lr)
    except Exception as error:  # the class is the user's
        raise RecipeError(f"optimizers.{name}", f"{spec.path}: {error}") from error
    for part in parts:
        for key in part.own:
            if key not in made.defaults:
                where = f"optimizers.{name}.groups[{part.group}].{key}"
                has = f"{spec.path} has no such setting of a group; it has {', '.join(made.defaults)}"
                raise RecipeError(where, has, is_key=True)
    return made


def _refusal(cls: type[torch.optim.Optimizer], parameters: Mapping[str, Tensor]) -> str:
    """Why an optimizer cannot train these parameters; "" if it can, for all one can tell."""
    needed = [p.name for p in inspect.signature(cls.step).parameters.values() if p.default is p.empty]
    if "closure" in needed:
        return "evaluates the loss again inside a step, and dtrain evaluates it once; adam would do"
    if all(callable(getattr(cls, name, None)) for name in ("train", "eval")):
        return (
            "has weights for training and others for evaluation, and must be told which (train and eval), "
            "which dtrain does not; adamw with a schedule, and [averages.NAME], would do"
        )
    if issubclass(cls, torch.optim.Muon):
        for name, parameter in parameters.items():
            if parameter.ndim != 2:
                shape = list(parameter.shape)
                said = f"trains matrices alone, and the model's {name} is {shape}"
                return f'{said}; kind = "muon", which trains the others by AdamW, would do'
    return ""
