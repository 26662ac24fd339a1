"""The console: a live bar on a terminal, plain lines where the output goes to a file or a pipe."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from dtrain.events import Evaluated, Event, Finished, Observer, Sampled, Saved, Started, Stepped, Stopped
from dtrain.spec.words import visible
from dtrain.track.base import RunInfo

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

REFRESH_SECONDS = 0.2  # drawing takes about 3 ms, which is then 1.5 % of the loop at most
EXCERPT_LINES, EXCERPT_WIDTH = 8, 100  # of a file of texts
WIDTH = 9  # of a number in a plain line, so that lines align: 1.234e-05


@contextmanager
def open_console(run: RunInfo, step: int) -> Iterator[Observer]:
    """Show the run: on a terminal a bar with the events above it, else one plain line for each."""
    from rich.console import Console

    console = Console()
    if not (sys.stdout.isatty() and console.is_interactive):
        yield _Plain(run).observe
        return
    with _bar(console) as bar:
        yield _Live(run, bar).observe


class _Pace:
    """How fast the steps go, measured from the end of the first: that one also compiles and warms up."""

    def __init__(self) -> None:
        self.total = 0
        self._start = time.monotonic()
        self._first = 0
        self._first_time = 0.0

    def begin(self, total: int) -> None:
        self.total = total
        self._start = time.monotonic()

    def notice(self, step: int) -> None:
        if not self._first:
            self._first, self._first_time = step, time.monotonic()

    def elapsed(self) -> str:
        return clock(time.monotonic() - self._start)

    def left(self, step: int) -> str:
        if not self._first or step <= self._first:
            return ""
        seconds = (time.monotonic() - self._first_time) / (step - self._first) * (self.total - step)
        return f"{clock(seconds)} left"


class _Plain:
    def __init__(self, run: RunInfo):
        self._run = run
        self._pace = _Pace()

    def observe(self, event: Event) -> None:
        if isinstance(event, Stepped):
            self._pace.notice(event.step)
            if event.metrics:
                self._print(
                    _place(event.step, self._pace.total),
                    *_main_values(event.metrics, width=WIDTH),
                    self._pace.left(event.step),
                )
            return
        if isinstance(event, Started):
            self._pace.begin(event.total)
        self._print(*_parts(event, self._run, self._pace))
        if isinstance(event, Sampled):
            for line in _excerpts(event.texts.values()):
                self._print(line)

    def _print(self, *parts: str) -> None:
        print("  ".join(parts).rstrip(), flush=True)


class _Live:
    def __init__(self, run: RunInfo, bar: "Progress"):
        self._run = run
        self._pace = _Pace()
        self._bar = bar
        self._task = bar.add_task("", total=None, visible=False, elapsed="", left="")
        self._description = ""
        self._next_drawing = 0.0

    def observe(self, event: Event) -> None:
        if isinstance(event, Stepped):
            self._pace.notice(event.step)
            if event.metrics:
                self._description = "  ".join(_main_values(event.metrics, width=0))
            if time.monotonic() >= self._next_drawing:
                self._draw(event.step)
            return
        if isinstance(event, Started):
            self._pace.begin(event.total)
            self._bar.update(self._task, total=event.total, visible=True)
        line = "  ".join(_parts(event, self._run, self._pace)).rstrip()
        lines = [line, *(_excerpts(event.texts.values()) if isinstance(event, Sampled) else ())]
        self._bar.console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
        self._draw(event.step)

    def _draw(self, step: int) -> None:
        self._bar.update(
            self._task,
            completed=step,
            description=self._description,
            elapsed=self._pace.elapsed(),
            left=self._pace.left(step),
        )
        self._bar.refresh()
        self._next_drawing = time.monotonic() + REFRESH_SECONDS


def short(value: float) -> str:
    """Four significant digits: 0.6931, 1.2e-05."""
    return f"{value:.4g}"


def clock(seconds: float) -> str:
    """1:02, or 3:01:02 from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _parts(event: Event, run: RunInfo, pace: _Pace) -> Iterator[str]:
    """The line of an event other than `Stepped`, in parts."""
    yield _place(event.step, pace.total)
    match event:
        case Started(step=step, total=total):
            yield f"{run.name}: {total - step} steps to go on {run.where}, in {run.folder}"
        case Evaluated(metrics=metrics):
            yield from _aligned(metrics, WIDTH)
        case Sampled(pictures=pictures, texts=texts):
            files = {**pictures, **texts}
            yield from (f"{name} in {_inside(run.folder, path)}" for name, path in files.items())
        case Saved(path=path):
            yield f"saved {_inside(run.folder, path)}"
        case Stopped():
            yield f"stopped by {event.why}"
        case Finished(skipped=skipped, early=early):
            yield f"finished in {pace.elapsed()}" + (f": {early}" if early else "")
            if skipped:
                yield f"{skipped} update{'s' * (skipped > 1)} skipped, as their numbers were not finite"


def _excerpts(paths: Iterable[Path]) -> Iterator[str]:
    """The first lines of each file of texts; what a terminal would carry out is escaped."""
    for path in paths:
        with path.open(encoding="utf-8") as file:
            for line in islice(file, EXCERPT_LINES):
                yield f"    {visible(line.rstrip())[:EXCERPT_WIDTH]}"


def _main_values(metrics: Mapping[str, float], width: int) -> Iterator[str]:
    """The losses and the speed; the rest is in the other trackers."""
    yield from _aligned({name: value for name, value in metrics.items() if name.endswith("/loss")}, width)
    if "examples_per_second" in metrics:
        yield f"{metrics['examples_per_second']:,.0f} examples/s"


def _aligned(metrics: Mapping[str, float], width: int) -> Iterator[str]:
    return (f"{name} {short(value):<{width}}" for name, value in metrics.items())


def _place(step: int, total: int) -> str:
    return f"step {step:>{len(str(total))}}/{total}"


def _inside(folder: Path, path: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def _bar(console: "Console") -> "Progress":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Column

    # rich's own drawing thread would take the interpreter from the loop even when nothing has changed.
    return Progress(
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[elapsed]}", style="progress.elapsed"),
        TextColumn("{task.fields[left]}", style="progress.remaining"),
        TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
        console=console,
        auto_refresh=False,
        expand=True,
    )
