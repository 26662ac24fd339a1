"""Evaluation: the system's own metrics, and those that the recipe names, over every example once."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from dtrain.checkpoint.features import load_features
from dtrain.data.loader import Loader, evaluation_batches
from dtrain.engines.base import Engine
from dtrain.errors import RecipeError
from dtrain.recipe.check_metrics import clash
from dtrain.recipe.metrics import PREFIX
from dtrain.spec.metrics import Frechet, Metric
from dtrain.spec.table import Imported
from dtrain.spec.trust import Trust
from dtrain.spec.words import nearest
from dtrain.systems.base import Array, Batch, Evaluation, Mode, Models, Ops, System
from dtrain.world.position import Position

if TYPE_CHECKING:
    from dtrain.backends.torch_measuring import Measuring


@dataclass(frozen=True)
class Evaluator:
    """What an evaluation needs, be it of a run or of a checkpoint."""

    engine: Engine
    system: System
    loader: Loader  # of a sweep over the examples
    metrics: "Measuring | None"  # those of the recipe; None where it names none
    seed: int
    position: Position


def open_metrics(
    tables: Mapping[str, Metric | Imported],
    range: tuple[float, float],
    gather: Callable[[Array], list[Array]],
    trust: Trust,
) -> "Measuring | None":
    """The metrics of a recipe, for data of this range, with the models whose features they go by."""
    if not tables:
        return None
    from dtrain.backends.torch_measuring import Measuring

    features = {
        name: load_features(table, range, at=f"evaluate.metrics.{name}", trust=trust)
        for name, table in tables.items()
        if isinstance(table, Frechet)
    }
    return Measuring(tables, range=range[1] - range[0], features=features, gather=gather, trust=trust)


def evaluate(on: Evaluator, *, batches: int | None = None) -> dict[str, float]:
    """The metrics over every evaluation example, each once; the same, to rounding, on any number of ranks.

    Or over so many of each rank's batches: enough for their names.
    """
    terms = []
    on.position.long("evaluating its first micro-batch")
    for micro, batch in islice(evaluation_batches(on.loader), batches):
        function = partial(observed, on.system, predicts=on.metrics is not None)
        shown: Evaluation = on.engine.run(function, batch, key=(on.seed, "evaluate", micro.number))
        weight = len(micro.indices) if shown.weight is None else shown.weight
        terms.append((0 if micro.idle else weight, shown.terms))
        if on.metrics is not None:
            if shown.predicted is None:
                raise RecipeError("evaluate.metrics", "the system has no predictions to measure", is_key=True)
            for name in on.metrics.tables.keys() & shown.terms.keys():
                raise clash(name)
            on.metrics.update(*shown.predicted, idle=micro.idle)
        on.position.at(f"evaluating, after micro-batch {micro.number}")
    on.position.long("computing metrics")
    own = on.engine.mean(terms)
    more = {} if on.metrics is None else on.engine.share(on.metrics.compute())  # or ranks could part by a bit
    return {PREFIX + name: value for name, value in {**own, **more}.items()}


def observed(system: System, models: Models, batch: Batch, ops: Ops, *, predicts: bool) -> Evaluation:
    """What a system shows of one micro-batch, its predictions with it where they are asked for."""
    shown = system.evaluate(models, batch, ops)
    if not isinstance(shown, Evaluation):
        shown = Evaluation(shown)
    if not predicts or shown.predicted is not None:
        return shown
    return Evaluation(shown.terms, shown.weight, system.predict(models, batch, ops))


class Best:
    """The best evaluation so far by one metric, and whether a run has waited long enough for a better one.

    A few numbers, which a checkpoint holds: so a run that is cut off and resumed ends where it would have.
    """

    def __init__(self, metric: str | None, mode: Mode | None, patience: int | None, count: int = 1):
        self.metric, self.mode, self.patience, self.count = metric, mode, patience, count
        self.top: list[tuple[int, float]] = []  # steps and values, the best first; at most `count`
        self.waited = 0  # evaluations since the best

    @property
    def at(self) -> tuple[int, float] | None:
        """Step and value of the best."""
        return self.top[0] if self.top else None

    @property
    def steps(self) -> list[int]:
        """The steps of the best: their checkpoints stay."""
        return [step for step, _ in self.top]

    @property
    def is_stale(self) -> bool:
        """Whether patience is at its end."""
        return self.patience is not None and self.waited >= self.patience

    @property
    def why_stale(self) -> str:
        """Why a run ends early; empty if it does not."""
        if not self.is_stale:
            return ""
        than = "a finite number" if self.at is None else f"better than {self.at[1]:.4g} of step {self.at[0]}"
        return f"{self.metric} was not {than} in {self.waited} evaluations"

    def check(self, metrics: Iterable[str]) -> None:
        """Raise RecipeError if the metric is not among those of evaluation."""
        if self.metric is not None and self.metric not in metrics:
            there = list(metrics)
            said = f'"{self.metric}" is not evaluated; there is {", ".join(there) or "nothing"}'
            raise RecipeError("checkpoint.best", said, suggestion=nearest(self.metric, there))

    def observe(self, step: int, metrics: Mapping[str, float], *, waits: bool) -> bool:
        """Note an evaluation and say whether it is among the best.

        If it is not the best of all, and it `waits`, patience runs.
        """
        if self.metric is None:
            return False
        value, sign = metrics[self.metric], 1 if self.mode == "max" else -1
        if math.isfinite(value):  # of equal ones the first is the better
            self.top = sorted([*self.top, (step, value)], key=lambda each: -sign * each[1])[: self.count]
        if self.at is not None and self.at[0] == step:
            self.waited = 0
        elif waits:
            self.waited += 1
        return step in self.steps

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint holds of it."""
        if self.metric is None:
            return None
        return {
            "metric": self.metric,
            "mode": self.mode,
            "at": self.at,
            "top": self.top,
            "waited": self.waited,
            "stale": self.is_stale,
        }

    def restore(self, state: Mapping[str, Any] | None, *, is_there: Callable[[int], bool]) -> None:
        """Take up a state, if it was of the same choice, and the best one's checkpoint is still there."""
        if state is None or (state["metric"], state["mode"]) != (self.metric, self.mode):
            return
        top = state.get("top", [] if state["at"] is None else [state["at"]])  # format 1 has the best alone
        if not top or is_there(top[0][0]):
            self.top = [(step, value) for step, value in top if is_there(step)][: self.count]
            self.waited = state.get("waited", 0)
