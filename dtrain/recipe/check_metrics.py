"""What is wrong with the metrics that a recipe goes by: of checkpoints, schedules, and a sweep's trials."""

from collections.abc import Iterator
from typing import Any

from dtrain.errors import RecipeError
from dtrain.recipe.metrics import evaluated, known_mode
from dtrain.recipe.parts import Parts
from dtrain.spec.words import dotted, either, nearest, show
from dtrain.systems.base import System


def measured(system: Any, parts: Parts) -> list[str]:
    """The metrics of evaluation; empty where only a run can tell, or the table of them is not good."""
    if "evaluate" not in parts.values and ("evaluate" in parts.table or parts.misspelt("evaluate")):
        return []
    return evaluated(system, parts.values["evaluate"].metrics if "evaluate" in parts.values else {})


def best(parts: Parts, system: Any, metrics: list[str]) -> Iterator[RecipeError]:
    """What is wrong with the metric that checkpoints are chosen by, and that a run may end by."""
    checkpoint, train = parts.values.get("checkpoint"), parts.values.get("train")
    best = None if checkpoint is None else checkpoint.best
    if best is not None and checkpoint is not None:
        yield from (wrong := list(_metric("checkpoint.best", best, metrics)))
        own = parts.values["evaluate"].metrics if "evaluate" in parts.values else {}
        is_known = isinstance(system, System) or best.removeprefix("evaluate/") in own
        if checkpoint.mode is None and not wrong and is_known and known_mode(best, system, own) is None:
            said = f'required, as nothing says which value of {show(best)} is best; "max" or "min" would do'
            yield RecipeError("checkpoint.mode", said)
    if train is None or train.patience is None:
        return
    if best is None and (checkpoint is not None or "checkpoint" not in parts.table):
        said = 'needs the metric that is to become better; checkpoint.best = "evaluate/loss" would do'
        yield RecipeError("train.patience", said, is_key=True)
    if _evaluates_never(parts):
        said = "nothing is evaluated before the end (every.evaluate is 0); every.evaluate = 500 would do"
        yield RecipeError("train.patience", said, is_key=True)


def idle_choices(checkpoint: Any) -> Iterator[RecipeError]:
    """What is said of the best checkpoints where no metric says which they are."""
    if checkpoint is None or checkpoint.best is not None:
        return
    for key, is_said in (("keep_best", checkpoint.keep_best > 1), ("mode", checkpoint.mode is not None)):
        if is_said:
            said = 'needs the metric that says which are the best; checkpoint.best = "evaluate/loss" would do'
            yield RecipeError(f"checkpoint.{key}", said, is_key=True)


def compared(parts: Parts, system: Any, metrics: list[str]) -> Iterator[RecipeError]:
    """What is wrong with the metric that the trials of a sweep are compared by."""
    sweep, checkpoint = parts.values.get("sweep"), parts.values.get("checkpoint")
    if sweep is None or (checkpoint is None and "checkpoint" in parts.table):
        return
    metric = sweep.metric or (None if checkpoint is None else checkpoint.best)
    if metric is None:
        near = f"one of {', '.join(metrics)}" if metrics else '"evaluate/loss"'
        yield RecipeError("sweep.metric", f"required, but missing; {near} would do")
        return
    wrong = list(_metric("sweep.metric", metric, metrics)) if sweep.metric else []
    yield from wrong
    own = parts.values["evaluate"].metrics if "evaluate" in parts.values else {}
    given = sweep.mode or (checkpoint.mode if checkpoint is not None and checkpoint.best == metric else None)
    known = known_mode(metric, system, own)
    if sweep.mode is not None and known is not None and sweep.mode != known:
        said = f"found {show(sweep.mode)}, but the best {metric} is the {known}; leave it out"
        yield RecipeError("sweep.mode", said)
    if given is None and not wrong and known is None:
        said = f'required, as nothing says which value of {show(metric)} is best; "max" or "min" would do'
        yield RecipeError("sweep.mode", said)
    track = parts.values.get("track")
    if track is not None and "jsonl" not in track.kinds:
        yield RecipeError("track.kinds", 'a sweep reads metrics.jsonl of its runs; "jsonl" belongs here, too')
    if sweep.prune is not None and _evaluates_never(parts):
        said = "nothing is evaluated before the end (every.evaluate is 0); every.evaluate = 500 would do"
        yield RecipeError("sweep.prune", said, is_key=True)


def clashes(parts: Parts, system: Any) -> Iterator[RecipeError]:
    """Metrics under names that the system has for its own."""
    for name in getattr(parts.values.get("evaluate"), "metrics", {}):
        if isinstance(system, System) and name in system.evaluates and evaluated(system, {}):
            yield clash(name)


def clash(name: str) -> RecipeError:
    """The mistake of a metric under a name that is the system's."""
    said = "the system evaluates this itself; another name would do"
    return RecipeError(dotted(("evaluate", "metrics", name)), said, is_key=True)


def _metric(key: str, found: str, metrics: list[str]) -> Iterator[RecipeError]:
    """What is wrong with the name of a metric."""
    own = "evaluate/" + found.rpartition("/")[2]
    if metrics and found not in metrics:
        said = f"found {show(found)}; {either(metrics)} would do"
        yield RecipeError(key, said, suggestion=own if own in metrics else nearest(found, metrics))
    elif found != own and not found.startswith("evaluate/"):
        said = f'found {show(found)}; a metric of evaluation would do, such as "evaluate/loss"'
        yield RecipeError(key, said, suggestion=own)


def monitors(parts: Parts, metrics: list[str]) -> Iterator[RecipeError]:
    """Schedules that go by what is never evaluated."""
    for name, optimizer in parts.values.get("optimizers", {}).items():
        monitor, key = getattr(optimizer.schedule, "monitor", None), f"optimizers.{name}.schedule.monitor"
        if monitor is None:
            continue
        yield from _metric(key, monitor, metrics)
        if _evaluates_never(parts):
            said = "nothing is evaluated before the end (every.evaluate is 0); every.evaluate = 500 would do"
            yield RecipeError(key, said)


def _evaluates_never(parts: Parts) -> bool:
    """Whether nothing is evaluated before the end, for all one can tell."""
    every = parts.values.get("every")
    return not every.evaluate if every is not None else "every" not in parts.table
