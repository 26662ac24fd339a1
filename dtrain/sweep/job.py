"""A trial that is being worked on: its recipe, its runs one seed after the other, and how it ends."""

import math
import os
import signal
import time
from pathlib import Path
from typing import IO

from dtrain.errors import DtrainError, RecipeErrors
from dtrain.format.checkpoints import checkpoints_in, step_of
from dtrain.format.files import hash_of, write_synced
from dtrain.format.locks import is_held
from dtrain.format.metrics import METRICS, latest_in
from dtrain.format.runs import standing
from dtrain.recipe.plan import pace_of
from dtrain.recipe.values import Recipe
from dtrain.recipe.write import to_toml
from dtrain.sweep.locks import try_hold
from dtrain.sweep.process import STOPPED, Finder, Process, Told
from dtrain.sweep.setup import Setup
from dtrain.sweep.study import Trial

MISTAKE = 2  # the status of a run that is refused
PATIENCE = 600  # looks at a run that saves while its launcher is gone
MOST_STOPS = 3  # by others; with one more a trial has failed
OVER = ("finished", "stopped early")  # runs of which nothing is to be trained any more


class Job:
    """A trial on its way: `poll` moves it on, until it `is_over`."""

    def __init__(self, trial: Trial, setup: Setup, slot: int):
        self.trial, self.slot = trial, slot
        self.since = time.monotonic()
        self.is_over = self.waits = False
        self._setup = setup
        self._recipes: list[Recipe] = []  # of each seed
        self._values: list[float] = []  # of the seeds that are done
        self._runs: list[str] = []
        self._stops = 0
        self._is_stopped = self._is_pruned = False
        self._lacks: str | None = None  # why no value will come of it
        self._process: Process | None = None
        self._hold: IO[bytes] | None = None
        self._told: Told | None = None
        self._finder = Finder(Path(), "")
        self._patience = PATIENCE
        self._saved = 0  # the step from which the process carries on
        try:
            self._recipes = [setup.recipe(trial.settings, seed) for seed in range(setup.sweep.seeds)]
        except DtrainError as error:
            first = error.errors[0] if isinstance(error, RecipeErrors) else error
            self._fail(str(first))

    @property
    def progress(self) -> tuple[int, int | None, float | None]:
        """The step of the run at hand, how many it has, and the newest value of the metric."""
        if self._told is None:
            return 0, None, None
        try:
            step = latest_in(self._told.run / METRICS).step
        except DtrainError:
            step = 0
        return step, self._total, next(reversed(self._told.values.values()), None)

    def poll(self) -> None:
        """Begin what is next, hear what was told, and see whether a run has ended."""
        if self.is_over:
            return
        if self._hold is None and not self._begin():
            return
        status = 0 if self._process is None else self._process.status()
        self._listen()
        if status is not None and not self._saves():
            self._end(status)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Save and end; the trial is carried on some other time."""
        self._is_stopped = True
        if self._process is not None:
            self._process.stop(number)
        elif not self.is_over:
            self._leave()

    @property
    def _recipe(self) -> Recipe:
        return self._recipes[min(len(self._values), len(self._recipes) - 1)]

    @property
    def _total(self) -> int | None:
        """How many steps the run at hand has, where that is known."""
        pace = pace_of(self._recipe.train, self._recipe.system, self._setup.examples)
        return None if pace is None else pace.total

    def _begin(self) -> bool:
        """Start the run of the next seed, or take what is there; False while another process trains it."""
        text = to_toml(self._recipe)
        self._told = None  # what was waited for may be gone
        self._setup.holds.mkdir(parents=True, exist_ok=True)
        hold = try_hold(self._setup.holds / hash_of(text.encode())[:32])
        self._finder = Finder(self._setup.launch.runs / self._recipe.name, text)
        run = None if hold is None else self._find()
        state = None if run is None else standing(run).state
        self.waits = hold is None or state == "running"  # of another sweep, or of whoever started it by hand
        if hold is None or self.waits:
            if hold is not None:
                hold.close()
            return False
        self._hold = hold
        self._listen()  # an earlier life may have decided that the trial ends there
        if state not in OVER and not self._is_pruned:
            self._patience, self._saved = PATIENCE, self._last_saved()
            self._process = self._start(text, hold)
        return True

    def _start(self, text: str, hold: IO[bytes]) -> Process:
        folder = self._setup.folder / "trials"
        folder.mkdir(parents=True, exist_ok=True)
        seed = f"-{len(self._values)}" if len(self._recipes) > 1 else ""
        name = f"{self.trial.number:04}{seed}-{hash_of(text.encode())[:8]}"  # its own, whatever else is tried
        file = folder / f"{name}.toml"
        write_synced(file, text.encode())
        setup = self._setup
        more = {"WANDB_RUN_GROUP": setup.name, "WANDB_JOB_TYPE": f"trial {self.trial.number}"}
        more = {key: value for key, value in more.items() if key not in os.environ}
        devices = setup.devices[self.slot] if setup.devices else ()
        environment = setup.launch.environment(devices, more)
        return Process(setup.launch, file, file.with_suffix(".log"), environment, (hold.fileno(),))

    def _find(self) -> Path | None:
        """The run at hand, once there is one."""
        if self._told is None:
            run = self._finder.run()
            self._told = None if run is None else Told(run, self._setup.metric)
            if run is not None:
                self._runs = [*self._runs[: len(self._values)], run.name]
                self.trial.note("runs", self._runs)
        return None if self._told is None else self._told.run

    def _listen(self) -> None:
        """Hand on what the run of the first seed has told, until that ends the trial."""
        if self._find() is None or self._told is None:
            return
        for step, value in self._told.news():
            if self._values or self._is_pruned or math.isnan(value):
                continue
            total = self._total
            if self.trial.report(step, value, is_last=total is not None and step >= total):
                self._is_pruned = True
                if self._process is not None:
                    self._process.stop()
        if self._process is not None and self._lacks is None and (lacks := self._told.lacks()):
            self._lacks = lacks
            self._process.stop()

    def _end(self, status: int) -> None:
        process, self._process = self._process, None
        if self._hold is not None:
            self._hold.close()
            self._hold = None
        if self._is_pruned:
            self.trial.prune()
            self.is_over = True
        elif status == 0:
            self._count()
        elif self._lacks is not None:
            self._fail(self._lacks)
        elif self._is_stopped:
            self._leave()
        elif status == MISTAKE and self._is_trained_by_others():
            self.waits = True
        elif (status in STOPPED or (status != MISTAKE and self._lost_a_rank())) and self._stops < MOST_STOPS:
            self._stops += 1  # somebody else's wish, who did not mean the sweep: it is carried on
        else:
            assert process is not None
            often = f", {self._stops + 1} times" if self._stops else ""
            self._fail(process.cause() + often)

    def _saves(self) -> bool:
        """Whether the run goes on though its launcher has ended, which may not wait for it."""
        if self._process is None or self._told is None or not is_held(self._told.run):
            return False
        self._patience -= 1
        return self._patience > 0

    def _lost_a_rank(self) -> bool:
        """Whether one of several processes may have been killed: the launcher says of all causes the same.

        If the cause is in the recipe it soon comes again, and nothing more was saved by then.
        """
        return self._setup.launch.processes > 1 and self._last_saved() > self._saved

    def _last_saved(self) -> int:
        """The step of the newest checkpoint of the run at hand."""
        found = [] if self._find() is None or self._told is None else checkpoints_in(self._told.run)
        return step_of(found[-1]) if found else 0

    def _is_trained_by_others(self) -> bool:
        """Whether somebody else began the same run at the same moment."""
        return self._told is not None and is_held(self._told.run)

    def _count(self) -> None:
        """Take the value of a run that has come to its end, and go on with the next seed."""
        found = {} if self._told is None else self._told.values
        if not found:
            lacks = None if self._told is None else self._told.lacks()
            return self._fail(lacks or f"its run told nothing of {self._setup.metric}")
        if self._setup.sweep.value == "best":
            found = {step: value for step, value in found.items() if not math.isnan(value)} or found
        best = {"max": max, "min": min}[self._setup.mode]
        value = found[max(found)] if self._setup.sweep.value == "last" else best(found.values())
        if math.isnan(value):
            return self._fail(f"{self._setup.metric} is not a number")
        self._values.append(value)
        self._told = None
        if len(self._values) == len(self._recipes):
            self.trial.finish(self._values)
            self.is_over = True
        elif self._is_stopped:
            self._leave()

    def _fail(self, cause: str) -> None:
        """Tell why no value comes of the trial, and of several seeds which it was."""
        if len(self._recipes) > 1:
            cause = f"seed {self._recipe.seed}: {cause}"
            self.trial.note("values", self._values)
        self.trial.fail(cause)
        self.is_over = True

    def _leave(self) -> None:
        self.trial.leave()
        if self._hold is not None:
            self._hold.close()
        self.is_over = True
