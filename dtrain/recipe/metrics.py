"""What an evaluation measures, by name, and which value of each is best."""

from collections.abc import Mapping
from typing import Any

from dtrain.recipe.values import Recipe
from dtrain.spec.metrics import Metric
from dtrain.systems.base import Mode, System

PREFIX = "evaluate/"


def evaluated(system: Any, metrics: Mapping[str, Any]) -> list[str]:
    """The names of what is evaluated; empty where only a run can tell."""
    owners = {
        next(cls for cls in type(system).__mro__ if name in vars(cls))
        for name in ("evaluate", "evaluates")
        if isinstance(system, System)
    }
    if len(owners) != 1:  # a class of the user's own may evaluate more than the one that it is made from
        return []
    return [PREFIX + name for name in (*system.evaluates, *metrics)]


def known_mode(name: str, system: Any, metrics: Mapping[str, Any]) -> Mode | None:
    """Which value of a metric is best, as far as its kind or the system says; of a loss the least."""
    name = name.removeprefix(PREFIX)
    if name in metrics:
        return metrics[name].best if isinstance(metrics[name], Metric) else None
    own = system.evaluates if isinstance(system, System) else {}
    return own.get(name) or ("min" if name == "loss" else None)


def best_mode(recipe: Recipe) -> Mode | None:
    """Which value of the metric that checkpoints are chosen by is best; None where there is none."""
    choice = recipe.checkpoint
    if choice.best is None:
        return None
    return choice.mode or known_mode(choice.best, recipe.system, recipe.evaluate.metrics)


def compared_by(recipe: Recipe) -> tuple[str, Mode]:
    """The metric by which the trials of a recipe's sweep are compared, and which value of it is best."""
    sweep, choice = recipe.sweep, recipe.checkpoint
    assert sweep is not None
    metric = sweep.metric or choice.best
    assert metric is not None
    mode = sweep.mode or (choice.mode if metric == choice.best else None)
    mode = mode or known_mode(metric, recipe.system, recipe.evaluate.metrics)
    assert mode is not None
    return metric, mode
