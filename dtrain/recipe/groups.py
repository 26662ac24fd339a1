"""Whether the groups of optimizers fit the parameters of their models, found before anything is built."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from dtrain.errors import RecipeError
from dtrain.spec.groups import Trainable, problems, trainable, without
from dtrain.spec.models import Model, ModelSpec
from dtrain.spec.optimizers import Optimizer
from dtrain.spec.table import Wrong
from dtrain.spec.words import dotted
from dtrain.systems.base import System


def group_problems(values: Mapping[str, Any], spread: Collection[str]) -> Iterator[RecipeError]:
    """Every pattern that matches nothing, and every setting that has nothing to do.

    The optimizer of the models `spread` is "*": what fits one of those that are trained is no mistake. Of
    imported models, and of those with imported layers, only a run can tell.
    """
    system, models = values.get("system"), values.get("models", {})
    trained = (
        {name for names in system.trains() for name in names} if isinstance(system, System) else {*models}
    )
    shared: list[tuple[str, list[Wrong] | None]] = []
    for name, optimizer in values.get("optimizers", {}).items():
        own = _parameters(models.get(name)) if name in trained else None
        found = list(problems(optimizer, own)) if own else None
        if name in spread and name in trained:
            shared.append((name, found))
        else:
            yield from (_at(name, problem) for problem in found or ())
    yield from _of_all(shared)


def fitted(optimizer: Optimizer, model: Model) -> Optimizer:
    """The optimizer "*" with the patterns alone that match something of a model, where that is known."""
    own = _parameters(model)
    return without(optimizer, [problem.at for problem in problems(optimizer, own)]) if own else optimizer


def _of_all(shared: list[tuple[str, list[Wrong] | None]]) -> Iterator[RecipeError]:
    """The problems that "*" has with each of its models; None of a model that is not known."""
    if not shared or any(found is None for _, found in shared):
        return
    (name, first), *others = [(name, found or []) for name, found in shared]
    for problem in first:
        if all(problem.at in {each.at for each in found} for _, found in others):
            yield _at(name, problem)


def _parameters(model: Model | None) -> Trainable | None:
    """The parameters of a model whose shapes fit; None where nothing is known of them."""
    if not isinstance(model, ModelSpec):
        return None
    try:
        return trainable(model)
    except ValueError:  # said of the model itself
        return None


def _at(name: str, problem: Wrong) -> RecipeError:
    return RecipeError(f"{dotted(('optimizers', name))}.{problem.at}", str(problem), is_key=problem.is_key)
