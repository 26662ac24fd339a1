"""A sweep as it goes: a table on a terminal, a line for what happens elsewhere; and what came of it."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dtrain.cli.tables import columns
from dtrain.format.sweeps import short
from dtrain.recipe.cells import in_words
from dtrain.spec.words import brief, in_line
from dtrain.sweep.drive import Watcher
from dtrain.sweep.job import Job
from dtrain.sweep.results import best_of, outcome, ranked
from dtrain.sweep.setup import Setup
from dtrain.sweep.study import Record, Study

MOST = 20  # rows on a terminal while a sweep runs


@contextmanager
def open_watcher(setup: Setup, study: Study) -> Iterator[Watcher]:
    """What shows a sweep while it runs."""
    if not sys.stdout.isatty():
        yield Lines(setup, study)
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(), refresh_per_second=2, transient=True) as live:
        yield Table(setup, study, live)


class Lines:
    """A line for each trial that begins and that ends."""

    def __init__(self, setup: Setup, study: Study):
        self.setup, self.study = setup, study
        self._waiting: set[int] = set()  # trials of which that was said
        for line in _kept(study):
            print(line, flush=True)

    def began(self, job: Job) -> None:
        print(f"trial {job.trial.number}: {in_words(job.trial.settings)}", flush=True)

    def ended(self, job: Job) -> None:
        record = next(each for each in self.study.records() if each.number == job.trial.number)
        took = time.monotonic() - job.since
        print(f"trial {record.number}: {outcome(record, self.setup.metric)} ({took:.0f} s)", flush=True)

    def tick(self, jobs: list[Job]) -> None:
        for job in jobs:
            if job.waits and job.trial.number not in self._waiting:
                self._waiting.add(job.trial.number)
                print(f"trial {job.trial.number}: waits, as another process trains its recipe", flush=True)


class Table(Lines):
    """All trials, the running ones with how far they are."""

    def __init__(self, setup: Setup, study: Study, live: Any):
        self._live = live
        super().__init__(setup, study)

    def began(self, job: Job) -> None:
        pass

    def ended(self, job: Job) -> None:
        pass

    def tick(self, jobs: list[Job]) -> None:
        records = self.study.records()
        now = {job.trial.number: job for job in jobs}
        done = [record for record in ranked(records, self.setup.mode) if record.number not in now]
        shown = done[: MOST - len(now)]
        running = [record for record in records if record.number in now]
        table = grid(self.setup, [*shown, *running], now)
        left = len(done) - len(shown)
        table.caption = f"{len(done)} of {self.study.count} trials" + (f", {left} not shown" if left else "")
        self._live.update(table)


def print_results(setup: Setup, study: Study) -> None:
    """All trials, the best first, and how to go on from there."""
    records = ranked(study.records(), setup.mode)
    keys = list(setup.sweep.axes)
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(grid(setup, records, {}))
    else:
        print("\n".join(columns([heads(setup, keys), *(list(cells(r, keys, None)) for r in records)])))
    print()
    if failed := sum(record.state == "failed" for record in records):
        logs = setup.folder / "trials"
        print(f"failed      {failed}; {logs} has what they said, --retry trains them once more")
    if (best := best_of(records, setup.mode)) is not None:
        print(f"best        trial {best.number}: {setup.metric} {best.value:.6g}")
        print(f"recipe      {setup.folder / 'best.toml'}")
        for run in best.runs:
            print(f"run         {setup.launch.runs / setup.recipe(best.settings).name / run}")


def heads(setup: Setup, keys: Sequence[str]) -> list[str]:
    """The names of a table's columns."""
    return ["trial", *short(keys).values(), "state", "step", setup.metric]


def cells(record: Record, keys: Sequence[str], job: Job | None) -> Iterator[str]:
    """What a table says of a trial."""
    yield str(record.number)
    for key in keys:
        yield brief(record.settings[key]) if key in record.settings else "-"
    step, total, value = (
        (max(record.curve, default=None), None, record.value) if job is None else job.progress
    )
    yield "waiting" if job is not None and job.waits else record.state
    yield "-" if step is None else f"{step}/{total}" if total else str(step)
    if value is None and record.curve:
        value = record.curve[max(record.curve)]
    yield in_line(record.cause, 80) if record.state == "failed" else "-" if value is None else f"{value:.6g}"


def grid(setup: Setup, records: Sequence[Record], now: dict[int, Job]) -> Any:
    """A table for a terminal."""
    from rich.table import Table as RichTable
    from rich.text import Text

    keys = list(setup.sweep.axes)
    table = RichTable(box=None, pad_edge=False, header_style="bold")
    for head in heads(setup, keys):
        table.add_column(Text(head), overflow="fold")
    styles = {"running": "cyan", "failed": "red", "pruned": "dim"}
    for record in records:
        row = map(Text, cells(record, keys, now.get(record.number)))
        table.add_row(*row, style=styles.get(record.state))
    return table


def _kept(study: Study) -> Iterator[str]:
    """What earlier lives of the sweep have left."""
    states = [record.state for record in study.records()]
    told = {"finished": "finished", "pruned": "ended early", "failed": "failed", "cut off": "cut off"}
    counts = [f"{states.count(state)} {words}" for state, words in told.items() if state in states]
    if "running" in states:
        counts.append(f"{states.count('running')} being trained by others")
    if counts:
        yield f"of {study.count} trials: {', '.join(counts)}"
