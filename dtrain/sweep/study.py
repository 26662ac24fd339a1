"""The trials of a sweep, kept in Optuna's journal: what each tries, what came of it, which come next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, cast

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from dtrain.errors import DtrainError
from dtrain.recipe.cells import thawed
from dtrain.spec.sweep import Hyperband, Median, Sweep
from dtrain.spec.table import freeze
from dtrain.sweep.locks import Lock, held, is_held, try_hold
from dtrain.sweep.samplers import choice, open_sampler
from dtrain.sweep.setup import Setup

JOURNAL, HOLDS = "journal.log", ".trials"
PRUNED = "pruned"  # the step at which that was decided
AGAIN = "again"  # the trial that failed and is tried once more by this one
State = Literal["running", "cut off", "finished", "pruned", "failed"]
STATES: Mapping[TrialState, State] = {
    TrialState.RUNNING: "cut off",
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True)
class Record:
    """What is known of a trial. `value` is the mean of `values`, one of each seed."""

    number: int
    state: State
    settings: Mapping[str, Any]
    value: float | None
    values: tuple[float, ...]
    curve: Mapping[int, float]  # of its first seed, by step
    runs: tuple[str, ...]  # their folders' names
    cause: str  # of one that failed


class Study:
    """A sweep's trials, on which several processes may work."""

    def __init__(self, folder: Path, sweep: Sweep, name: str, mode: Literal["min", "max"], steps: int | None):
        """`name` says which of the journal's studies it is, `steps` how long a trial is.

        Raises DtrainError if the journal cannot be read or written.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.folder, self.sweep = folder, sweep
        journal = folder / JOURNAL
        self.count = len(sweep.grid()) if sweep.is_grid else sweep.trials or 0
        try:
            (folder / HOLDS).mkdir(parents=True, exist_ok=True)
            self.optuna = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(journal), cast(Any, Lock(journal)))),
                study_name=name,
                direction="minimize" if mode == "min" else "maximize",
                sampler=open_sampler(sweep),
                pruner=_pruner(sweep, steps),
                load_if_exists=True,
            )
        except (OSError, ValueError, KeyError) as error:
            raise DtrainError(f"{journal} cannot be used: {error}") from None

    def begin(self, again: set[int] | None = None) -> "Trial | None":
        """A trial to work on: one that was cut off, the next, or one of those that failed and are to begin
        `again`, which it is taken from; None where there is none.
        """
        with held(self.folder / ".lock"):
            trials = self.optuna.get_trials(deepcopy=False)
            for found in trials:
                if found.state == TrialState.RUNNING and (hold := self._hold(found.number)) is not None:
                    return Trial(optuna.Trial(self.optuna, found._trial_id), self, hold)
            if sum(AGAIN not in found.user_attrs for found in trials) < self.count:
                return self._held(self.optuna.ask())
            return self._held(self._again(again.pop())) if again else None

    def spend(self, seconds: float) -> None:
        """Note that so many seconds were spent, by whoever did so longest."""
        if seconds > self.seconds:
            self.optuna.set_user_attr("seconds", round(seconds, 1))

    @property
    def seconds(self) -> float:
        """How long trials have been worked on, in all lives of the sweep."""
        return float(self.optuna.user_attrs.get("seconds", 0.0))

    def records(self) -> list[Record]:
        """All trials that have begun, in their order; of one that was trained again what came last."""
        found: dict[int, Record] = {}
        for trial in self.optuna.get_trials(deepcopy=False):
            own = trial.user_attrs
            number = own.get(AGAIN, trial.number)
            is_held = trial.state == TrialState.RUNNING and self._is_held(trial.number)
            found[number] = Record(
                number,
                "running" if is_held else STATES.get(trial.state, "cut off"),
                freeze(own.get("settings", {})),
                trial.value if trial.state == TrialState.COMPLETE else None,
                tuple(own.get("values", ())),
                dict(sorted(trial.intermediate_values.items())),
                tuple(own.get("runs", ())),
                own.get("cause", ""),
            )
        return list(found.values())

    def _again(self, number: int) -> optuna.Trial:
        """Another trial that tries what one has tried."""
        old = self.optuna.get_trials(deepcopy=False)[number]
        new = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=old.params,
            distributions=old.distributions,
            user_attrs={AGAIN: number, "settings": old.user_attrs.get("settings", {})},
        )
        storage = self.optuna._storage
        return optuna.Trial(self.optuna, storage.create_new_trial(self.optuna._study_id, new))

    def _held(self, trial: optuna.Trial) -> "Trial":
        hold = self._hold(trial.number)
        assert hold is not None
        return Trial(trial, self, hold)

    def _hold(self, number: int) -> IO[bytes] | None:
        return try_hold(self._hold_of(number))

    def _hold_of(self, number: int) -> Path:
        return self.folder / HOLDS / f"{self.optuna.study_name}-{number:04}"

    def _is_held(self, number: int) -> bool:
        return is_held(self._hold_of(number))


def open_study(setup: Setup) -> Study:
    """The trials of a sweep that was made ready. Raises DtrainError if its journal cannot be used."""
    return Study(setup.folder, setup.sweep, setup.identity, setup.mode, setup.steps)


class Trial:
    """A trial that this process works on, until it is told what came of it."""

    def __init__(self, trial: optuna.Trial, study: Study, hold: IO[bytes]):
        self._trial, self._study, self._hold = trial, study, hold
        self.number: int = trial.user_attrs.get(AGAIN, trial.number)
        self.settings = study.sweep.settings(partial(choice, trial, study.sweep))
        self.note("settings", thawed(self.settings))
        self._told = set(study.optuna._storage.get_trial(trial._trial_id).intermediate_values)
        self._last = max(self._told, default=-1)

    def note(self, name: str, value: Any) -> None:
        """Keep something about it, such as JSON has."""
        if self._trial.user_attrs.get(name) != value:
            self._trial.set_user_attr(name, value)

    def report(self, step: int, value: float, *, is_last: bool) -> bool:
        """Keep what was measured at a step; whether the trial is to end there, unless it does so anyway.

        That is decided once: a pruner may not say so again, to whom asks after a kill, or what came since.
        """
        if step not in self._told:
            self._told.add(step)
            self._trial.report(value, step)
        elif step < self._last or PRUNED in self._trial.user_attrs:
            return bool(self._trial.user_attrs.get(PRUNED) == step)
        if is_over := not is_last and self._trial.should_prune():
            self.note(PRUNED, step)
        return is_over

    def finish(self, values: Sequence[float]) -> None:
        """It was trained to its end with every seed."""
        self.note("values", list(values))
        self._tell(TrialState.COMPLETE, sum(values) / len(values))

    def prune(self) -> None:
        """It was ended early."""
        self._tell(TrialState.PRUNED)

    def fail(self, cause: str) -> None:
        """It could not be trained."""
        self.note("cause", cause)
        self._tell(TrialState.FAIL)

    def leave(self) -> None:
        """Let it be carried on later."""
        self._hold.close()

    def _tell(self, state: TrialState, value: float | None = None) -> None:
        self._study.optuna.tell(self._trial, value, state=state)
        self._hold.close()


def _pruner(sweep: Sweep, steps: int | None) -> BasePruner:
    match sweep.prune:
        case Median(startup=startup, warmup=warmup):
            return MedianPruner(n_startup_trials=startup, n_warmup_steps=warmup)
        case Hyperband(min_steps=least, factor=factor):
            return HyperbandPruner(
                min_resource=least, max_resource=max(steps or least, least), reduction_factor=factor
            )
    return NopPruner()
