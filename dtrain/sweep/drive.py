"""The loop of a sweep: as many trials at a time as there are slots, until none is left or it has to stop."""

import time
from collections.abc import Callable
from typing import Protocol

from dtrain.errors import DtrainError
from dtrain.sweep.job import Job
from dtrain.sweep.results import write_results
from dtrain.sweep.setup import Setup
from dtrain.sweep.study import Study

PAUSE = 0.2  # seconds between two looks at the trials
NOTE = 30.0  # seconds after which the time that was spent is noted


class Watcher(Protocol):
    """Who shows how a sweep goes."""

    def began(self, job: Job) -> None: ...
    def ended(self, job: Job) -> None: ...
    def tick(self, jobs: list[Job]) -> None: ...


def drive(
    setup: Setup, study: Study, *, parallel: int, retry: bool, watcher: Watcher, asked: Callable[[], bool]
) -> str | None:
    """Work on trials until all are done; why it ended before, if it did.

    `asked` says whether to stop: those that run are saved then, and carried on some other time. Raises
    DtrainError if something cannot be written.
    """
    jobs: list[Job] = []
    try:
        return _drive(setup, study, jobs, parallel, retry, watcher, asked)
    except OSError as error:
        raise DtrainError(f"the sweep ends: {error}") from error
    finally:
        for job in jobs:  # where something failed here
            job.stop()


def _drive(
    setup: Setup,
    study: Study,
    jobs: list[Job],
    parallel: int,
    retry: bool,
    watcher: Watcher,
    asked: Callable[[], bool],
) -> str | None:
    before, since, noted = study.seconds, time.monotonic(), time.monotonic()
    failed = {r.number for r in study.records() if r.state == "failed"} if retry else set()
    why: str | None = None
    while True:
        spent = before + time.monotonic() - since
        if why is None:
            is_late = setup.sweep.minutes is not None and spent >= 60 * setup.sweep.minutes
            why = "it was asked to stop" if asked() else "its time is up" if is_late else None
            for job in jobs if why else ():
                job.stop()
        while why is None and len(jobs) < parallel and (trial := study.begin(again=failed)) is not None:
            free = next(slot for slot in range(parallel) if all(job.slot != slot for job in jobs))
            jobs.append(Job(trial, setup, free))
            write_results(setup, study)
            watcher.began(jobs[-1])
        if not jobs:
            study.spend(spent)
            return why
        for job in jobs:
            job.poll()
            if job.is_over:
                write_results(setup, study)
                watcher.ended(job)
        jobs[:] = [job for job in jobs if not job.is_over]
        watcher.tick(jobs)
        if time.monotonic() - noted > NOTE:
            study.spend(spent)
            noted = time.monotonic()
        if jobs:
            time.sleep(PAUSE)
