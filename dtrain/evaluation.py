"""Evaluation: the system's own metrics, and those that the recipe names, over every example once."""

import math
from collections.abc import Mapping
from functools import partial
from itertools import islice

from dtrain.data.loader import evaluation_batches
from dtrain.errors import RecipeError
from dtrain.run import Run
from dtrain.spec.words import nearest
from dtrain.systems.base import Batch, Evaluation, Models, Ops, System


def evaluate(run: Run, batches: int | None = None) -> dict[str, float]:
    """The metrics over every evaluation example, each once, on any number of ranks.

    Or over so many of each rank's batches: enough for their names.
    """
    assert run.evaluation is not None
    terms = []
    for micro, batch in islice(evaluation_batches(run.evaluation), batches):
        key = (run.recipe.seed, "evaluate", micro.number)
        shown: Evaluation = run.engine.run(partial(measures, run), batch, key=key)
        weight = len(micro.indices) if shown.weight is None else shown.weight
        terms.append((0 if micro.idle else weight, shown.terms))
    return {f"evaluate/{name}": value for name, value in run.engine.mean(terms).items()}


def measures(run: Run, models: Models, batch: Batch, ops: Ops) -> Evaluation:
    """The system's metrics of one micro-batch, and those that the recipe names."""
    metrics = run.recipe.evaluate.metrics
    shown = observed(run.system, models, batch, ops, predicts=bool(metrics))
    logs = dict(shown.terms)
    if metrics and shown.predicted is None:
        raise RecipeError("evaluate.metrics", "the system has no predictions to measure", is_key=True)
    for name, metric in metrics.items():
        at = f"evaluate.metrics.{name}"
        if name in logs:
            raise RecipeError(at, "the system evaluates this itself; another name would do", is_key=True)
        assert shown.predicted is not None
        logs[name] = ops.call(metric, *shown.predicted, at=at)
    return Evaluation(logs, shown.weight, shown.predicted)


def observed(system: System, models: Models, batch: Batch, ops: Ops, *, predicts: bool) -> Evaluation:
    """What a system shows of one micro-batch, its predictions with it where they are asked for."""
    shown = system.evaluate(models, batch, ops)
    if not isinstance(shown, Evaluation):
        shown = Evaluation(shown)
    if not predicts or shown.predicted is not None:
        return shown
    return Evaluation(shown.terms, shown.weight, system.predict(models, batch, ops))


def take_best(run: Run, evaluated: Mapping[str, float]) -> bool:
    """Note an evaluation that is the best so far. Raises RecipeError if it lacks the metric of choice."""
    choice = run.recipe.checkpoint
    if choice.best is None:
        return False
    if choice.best not in evaluated:
        there = ", ".join(evaluated) or "nothing"
        near = nearest(choice.best, evaluated)
        said = f'"{choice.best}" is not evaluated; there is {there}'
        raise RecipeError("checkpoint.best", said, suggestion=near)
    value, sign = evaluated[choice.best], 1 if choice.mode == "max" else -1
    is_best = math.isfinite(value) and (run.best is None or sign * value > sign * run.best[1])
    if is_best:
        run.best = (run.step, value)
    return is_best
