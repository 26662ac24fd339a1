"""Who chooses what a trial tries: Optuna's samplers, each draw a function of seed, trial and axis.

So a sweep that is carried on asks for the same values as one that was left alone.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from dtrain.spec.axes import Axis
from dtrain.spec.sweep import Sweep
from dtrain.spec.words import written


def open_sampler(sweep: Sweep) -> BaseSampler:
    """The sampler that a sweep asks for."""
    if sweep.is_grid:
        return Cells(sweep)
    first = startup(sweep)
    kinds: Mapping[str, Callable[[int], BaseSampler]] = {
        "random": lambda seed: RandomSampler(seed=seed),
        "tpe": lambda seed: TPESampler(seed=seed, n_startup_trials=first),
        "cma_es": lambda seed: CmaEsSampler(seed=seed, warn_independent_sampling=False),
    }
    return Drawn(kinds[sweep.sampler], sweep.seed)


def startup(sweep: Sweep) -> int:
    """How many trials are by chance first. Optuna's own ten would be half of a short sweep."""
    return 1 if sweep.sampler == "cma_es" else 4 + 2 * sum(a.tied is None for a in sweep.all_axes.values())


def choice(trial: Any, sweep: Sweep, key: str, axis: Axis) -> Any:
    """The value of an axis in a trial of Optuna's, which keeps it."""
    values = axis.cells() if sweep.is_grid else axis.values
    if values is not None:
        texts = [written(value) for value in values]
        return values[texts.index(trial.suggest_categorical(key, texts))]
    if axis.range is not None:
        first, last, *step = axis.range
        return trial.suggest_int(key, first, last, step=step[0] if step else 1)
    if axis.log_range is not None:
        return trial.suggest_int(key, *axis.log_range, log=True)
    ends = axis.uniform or axis.log_uniform
    assert ends is not None
    return trial.suggest_float(key, *ends, log=axis.uniform is None)


class Drawn(BaseSampler):
    """A sampler that is made anew for each draw, of a seed that says which draw it is."""

    def __init__(self, make: Callable[[int], BaseSampler], seed: int):
        self._make, self._seed = make, seed

    def _of(self, trial: FrozenTrial, what: str) -> BaseSampler:
        text = f"{self._seed}/{trial.number}/{what}"
        return self._make(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._of(trial, "").infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._of(trial, "").sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._of(trial, param_name).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: Any, values: Sequence[float] | None
    ) -> None:
        self._of(trial, "").after_trial(study, trial, state, values)


class Cells(BaseSampler):
    """Every combination in its order: trial n takes the n-th."""

    def __init__(self, sweep: Sweep):
        self._grid = sweep.grid()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return written(self._grid[trial.number][param_name])
