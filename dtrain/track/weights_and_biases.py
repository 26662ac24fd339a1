"""Weights & Biases: offline unless a key is configured, and resumed without a gap or a double.

Each step with anything to tell is one W&B row, whose own step is ours; it is handed over when the
next step begins, so an evaluation and its pictures stand in the row of their step.

A run may have been killed at any moment. Its earlier lives lie in files of their own, and W&B never
reads them back, so this tracker does:
- What they hold is not logged again: training is deterministic, a step trained twice tells the same.
  Online, the server holds everything below its `starting_step`.
- What they lost (wandb-core holds up to 15 s back, and loses it when its parent is killed) is filled
  in from `metrics.jsonl`, as far as `step`; what comes later is trained again. Without the jsonl
  tracker it stays lost.

W&B is a view of the run and no part of it: when it fails, that is said once on stderr and training
goes on. Rows go through a thread, since one `log` takes W&B 0.2 ms and, if a server hangs, forever.
"""

import html
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from dtrain.events import Evaluated, Event, Observer, Sampled, Stepped
from dtrain.format.metrics import METRICS, read_metrics
from dtrain.format.wandb_folder import note_url
from dtrain.track.base import RunInfo
from dtrain.track.transaction_log import find_logs, mend, read_standing, wait_until_closed

if TYPE_CHECKING:
    from wandb import Run

ORPHAN_SECONDS = 20  # a killed run's wandb-core was measured to end after 3 s
START_SECONDS = 30  # how long the start of a run waits for a server, before it goes offline
UPLOAD_SECONDS = 120  # how long the end of a run waits for a server; `wandb sync` sends the rest

Value = float | Path  # a number, or a PNG or text file
Row = dict[str, Value]
Work = SimpleQueue[tuple[int, Row] | int]  # a step and its row; in the end, the exit code


@contextmanager
def open_wandb(run: RunInfo, step: int) -> Iterator[Observer]:
    """Log to the W&B run `run.id`: online if a key is configured, else into `run.folder/wandb`.

    Also offline if the server does not answer. WANDB_MODE and W&B's other settings are W&B's to
    read. Never asks for a key; offline, nothing touches the network.
    """
    try:
        wandb_run, log = _open(run, step)
    except Exception as error:
        _warn(error)
        yield _ignore
        return

    work: Work = SimpleQueue()
    writer = Thread(target=_write, args=(work, log, wandb_run.finish), name="dtrain-wandb", daemon=True)
    writer.start()
    collector = _Collector(work.put)
    exit_code = 1
    try:
        for done, row in _rows_up_to(run.folder, step):
            collector.add(done, row)
        yield collector.observe
        exit_code = 0
    finally:
        collector.hand_over()
        work.put(exit_code)
        writer.join(2 * UPLOAD_SECONDS)
        if writer.is_alive():
            _warn(TimeoutError("it does not come to an end"))


class _Collector:
    """Joins what is told of one step into one row, and hands it over when another step begins."""

    def __init__(self, hand: Callable[[tuple[int, Row]], None]):
        self._hand = hand
        self._step = 0
        self._row: Row = {}

    def observe(self, event: Event) -> None:
        if isinstance(event, Stepped | Evaluated):
            self.add(event.step, event.metrics)
        elif isinstance(event, Sampled):
            self.add(event.step, event.pictures)
            self.add(event.step, event.texts)

    def add(self, step: int, values: Mapping[str, Value]) -> None:
        if step != self._step:
            self.hand_over()
            self._step = step
        if values:
            self._row.update(values)

    def hand_over(self) -> None:
        if self._row:
            self._hand((self._step, self._row))
            self._row = {}


def _open(run: RunInfo, step: int) -> tuple["Run", Callable[[int, Row], None]]:
    logs = find_logs(run.folder / "wandb", run.id)
    wait_until_closed(logs, ORPHAN_SECONDS)
    logs = mend(logs)
    wandb_run = _start(run)
    if wandb_run.url is not None:
        note_url(run.folder, wandb_run.url)
    standing = read_standing(logs) if wandb_run.offline else {}
    wandb_run.define_metric("step", hidden=True)
    wandb_run.define_metric("*", step_metric="step")

    def log(step: int, row: Row) -> None:
        known = standing.get(step, ())
        values: dict[str, Any] = {
            name: _medium(value) if isinstance(value, Path) else value
            for name, value in row.items()
            if name not in known
        }
        if values and step >= wandb_run.starting_step:  # of an online run, the server has what is below
            wandb_run.log({"step": step, **values}, step=step, commit=True)

    return wandb_run, log


def _medium(path: Path) -> Any:
    """A picture, or a text as it stands, as W&B shows it."""
    import wandb

    if path.suffix == ".png":
        return wandb.Image(str(path))
    text = html.escape(path.read_text(encoding="utf-8"))
    return wandb.Html(f"<pre>{text}</pre>", inject=False)


def _start(run: RunInfo) -> "Run":
    """Go online if a key is configured and the server answers, else offline.

    Offline is set for the whole process and not only for the run: wandb 0.31 reports telemetry over
    the network every minute unless its global settings are offline, whatever `wandb.init` is told.
    """
    import wandb
    from wandb.sdk.lib import wbauth

    quiet = wandb.Settings(silent=True, console="off", use_dot_wandb=False)
    offline = wandb.Settings(silent=True, console="off", use_dot_wandb=False, mode="offline")
    settings = wandb.setup(quiet).settings
    if settings.mode not in ("online", "run"):
        return _init(run)
    if wbauth.authenticate_session(
        host=settings.base_url, source="dtrain", prompt=False, update_session=False
    ):
        try:
            return _init(run)
        except wandb.Error as error:  # a node without a network, or a key that is refused
            _say(f"{settings.base_url} does not take the run, so it is tracked offline ({error})")
            wandb.teardown()
    wandb.setup(offline)
    return _init(run)


def _init(run: RunInfo) -> "Run":
    import wandb

    patience = min(START_SECONDS, wandb.setup().settings.init_timeout)  # WANDB_INIT_TIMEOUT may lower it
    wandb_run = wandb.init(
        id=run.id,
        project=run.project,
        name=run.name,
        config=dict(run.config),
        dir=str(run.folder),
        resume="allow",
        reinit="finish_previous",
        settings=wandb.Settings(init_timeout=patience, finish_timeout=UPLOAD_SECONDS),
    )
    if wandb_run.resumed:  # only online: W&B restored the config of the earlier life
        wandb_run.config.update(dict(run.config), allow_val_change=True)  # type: ignore[no-untyped-call]
    return wandb_run


def _write(work: Work, log: Callable[[int, Row], None], finish: Callable[[int], None]) -> None:
    """Log what comes until the exit code comes; after a failure, only take it, or it would pile up."""
    import wandb

    todo = work.get()
    try:
        while not isinstance(todo, int):
            log(*todo)
            todo = work.get()
        finish(todo)
    except Exception as error:
        _warn(error)
        with suppress(Exception, SystemExit):  # or its exit hook prints a traceback
            wandb.teardown()
        while not isinstance(todo, int):
            todo = work.get()


def _rows_up_to(folder: Path, step: int) -> Iterator[tuple[int, Row]]:
    """What `metrics.jsonl` tells up to `step`; samples that were deleted since are left out."""
    path = folder / METRICS
    if not path.exists():
        return
    for done, values in read_metrics(path):
        if done <= step:
            row: Row = {}
            for name, value in values.items():
                if not isinstance(value, str):
                    row[name] = value
                elif (folder / value).exists():
                    row[name] = folder / value
            yield done, row


def _ignore(event: Event) -> None:
    """Observe for a W&B that did not open."""


def _warn(error: Exception) -> None:
    _say(f"it failed, and training goes on without it ({type(error).__name__}: {error})")


def _say(message: str) -> None:
    print(f"dtrain: Weights & Biases: {message}", file=sys.stderr)
