"""Runs as rows of a table, sorted, and all that is known of them."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from dtrain.cli.tables import age, bytes_text, columns, moment
from dtrain.errors import DtrainError
from dtrain.format.runs import Standing, run_name, size_and_time, standing
from dtrain.format.sweeps import read_sweep, short
from dtrain.format.wandb_folder import how_to_look, url_of, was_offline
from dtrain.spec.words import brief, in_line, nearest

MOST_COMMANDS = 3  # that are printed under a table


@dataclass(frozen=True)
class Trial:
    """What a table says of the trial that a run is of."""

    number: int
    state: str
    settings: Mapping[str, Any]  # what it tried, by dotted key
    names: Mapping[str, str]  # the same keys, and those that it left as they are, by what tells them apart
    metric: str  # by which the sweep compares
    mode: str


@dataclass(frozen=True)
class Row:
    """What a table says of a run."""

    folder: Path
    standing: Standing
    size: int  # bytes
    moved: float  # seconds since 1970
    trial: "Trial | None" = None  # of a sweep that it is a run of

    @property
    def name(self) -> str:
        return run_name(self.folder)

    @property
    def state(self) -> str:
        """How the run stands; of one that its sweep has ended, that."""
        known = self.standing.state
        if self.trial is None or known not in ("cut off", "no checkpoint yet"):
            return known
        return self.trial.state if self.trial.state in ("pruned", "failed") else known


KEYS: dict[str, Callable[[Row], Any]] = {
    "name": lambda row: row.name,
    "id": lambda row: row.folder.name,
    "state": lambda row: row.state,
    "step": lambda row: -row.standing.step,
    "size": lambda row: -row.size,
    "moved": lambda row: -row.moved,
}  # what a table is sorted by besides metrics, numbers from the largest


def look_at(run: Path, trial: Trial | None = None) -> Row:
    """What a table says of a run."""
    return Row(run, standing(run), *size_and_time(run), trial)


def trials_by_run(folder: Path, sweep: str) -> dict[str, Trial]:
    """The trials of a sweep, by the folders of their runs. Raises DtrainError if there is no such sweep."""
    table = read_sweep(folder, sweep)
    names = short(table["axes"])
    return {
        run: Trial(each["trial"], each["state"], each["settings"], names, table["metric"], table["mode"])
        for each in table["trials"]
        for run in each["runs"]
    }


def sort(rows: Sequence[Row], key: str | None) -> Sequence[Row]:
    """Rows by a column or a metric, if by any. Raises DtrainError if no run has one of that name."""
    if key is None or not rows:
        return rows
    if key in KEYS:
        return sorted(rows, key=KEYS[key])
    if any(row.trial is not None and key in row.trial.names.values() for row in rows):
        return sorted(rows, key=lambda row: _tried_key(row, key))
    known = {metric for row in rows for metric in row.standing.latest.metrics}
    if key not in known:
        near = nearest(key, [*KEYS, *sorted(known)])
        hint = "" if near is None else f'; did you mean "{near}"?'
        raise DtrainError(f'--sort "{key}": no run has told of it{hint}')
    bests = [row.standing.best for row in rows]
    ways = {(best.metric, best.mode) for best in bests if best is not None}
    ways |= {(row.trial.metric, row.trial.mode) for row in rows if row.trial is not None}
    sign = 1 if (key, "min") in ways else -1

    def place(row: Row) -> tuple[int, float]:
        value = row.standing.latest.metrics.get(key)
        if value is None or math.isnan(value):
            return 2 if value is None else 1, 0.0
        return 0, sign * value

    return sorted(rows, key=place)


def show(rows: Sequence[Row], key: str | None) -> None:
    """Print rows, with the metric that they are sorted by: a table on a terminal, columns in a pipe."""
    names = () if rows[0].trial is None else rows[0].trial.names.values()
    metric = None if key in KEYS or key in names else key
    heads = [
        "name",
        "id",
        *_heads(rows),
        "state",
        "step",
        *([] if metric is None else [metric]),
        "best",
        "size",
        "moved",
        "W&B",
    ]
    if sys.stdout.isatty():
        _print_table(heads, [list(cells(row, metric, age)) for row in rows])
    else:
        click.echo("\n".join(columns([heads, *(list(cells(row, metric, moment)) for row in rows)])))
    for row in rows:
        if row.standing.problem:
            click.echo(f"damaged  {in_line(row.folder)}: {in_line(row.standing.problem, 500)}")
    commands = [how_to_look(row.folder)[-1] for row in rows if was_offline(row.folder)]
    for command in commands[:MOST_COMMANDS]:
        click.echo(f"offline  {in_line(command, 500)}")
    if more := len(commands[MOST_COMMANDS:]):
        click.echo(f"offline  and {more} more, whose commands --json prints")


def cells(row: Row, metric: str | None, when: Callable[[float], str]) -> Iterator[str]:
    """The cells of a row; what a stranger may have named cannot change how a terminal shows the others."""
    known = row.standing
    yield in_line(row.name)
    yield in_line(row.folder.name)
    if row.trial is not None:
        yield str(row.trial.number)
        tried = (row.trial.settings.get(key) for key in row.trial.names)
        yield from ("-" if value is None else in_line(brief(value), 40) for value in tried)
    yield row.state
    yield f"{known.step}/{'?' if known.total is None else known.total}"
    if metric is not None:
        value = known.latest.metrics.get(metric)
        yield "-" if value is None else f"{value:.4g}"
    best = known.best
    yield "-" if best is None else f"{in_line(best.metric)} {best.value:.4g} at {best.step}"
    yield bytes_text(row.size)
    yield when(row.moved)
    yield in_line(url_of(row.folder) or ("offline" if was_offline(row.folder) else "-"))


def _heads(rows: Sequence[Row]) -> Iterator[str]:
    """The columns of what trials tried."""
    trial = rows[0].trial
    if trial is not None:
        yield "trial"
        yield from map(in_line, trial.names.values())


def _tried_key(row: Row, name: str) -> tuple[int, float, str]:
    """What a row is sorted by, of a value that trials tried: numbers first, then words, then none."""
    assert row.trial is not None
    value = next(row.trial.settings.get(key) for key, short in row.trial.names.items() if short == name)
    if isinstance(value, int | float):
        return 0, value, ""
    return (1, 0.0, str(value)) if value is not None else (2, 0.0, "")


def as_table(row: Row) -> dict[str, Any]:
    """All that is known of a run."""
    known, latest = row.standing, row.standing.latest
    told = {"logged": latest.logged, "evaluated": latest.evaluated}
    return {
        "name": row.name,
        "id": row.folder.name,
        "path": str(row.folder),
        **({} if row.trial is None else {"trial": row.trial.number, "settings": row.trial.settings}),
        "state": row.state,
        "problem": known.problem or None,
        "step": known.step,
        "total": known.total,
        "best": None if known.best is None else vars(known.best),
        **{
            key: None if line is None else {"step": line.step, "metrics": line.numbers}
            for key, line in told.items()
        },
        "bytes": row.size,
        "moved": moment(row.moved),
        "wandb": {
            "url": url_of(row.folder),
            "offline": was_offline(row.folder),
            "commands": how_to_look(row.folder),
        },
    }


def _print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(Text(head), overflow="fold", justify="right" if head == "size" else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
