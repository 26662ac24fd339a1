"""dtrain runs: a table of runs."""

import json
from pathlib import Path

import click

from dtrain.errors import DtrainError


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("runs"))
@click.option("--name", metavar="NAME", help="Only runs of recipes of this name.")
@click.option("--sweep", metavar="NAME", help="Only runs of a sweep's trials, with what each tried.")
@click.option(
    "--sort",
    "key",
    metavar="KEY",
    help="By name, id, state, step, size, moved or a metric: evaluate/accuracy.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all that is known of them as JSON.")
def runs(folder: Path, name: str | None, sweep: str | None, key: str | None, as_json: bool) -> None:
    """Print a table of the runs in a folder, the newest first.

    A run is running, finished, stopped early, cut off (the command that began it carries on), without a
    checkpoint yet, or damaged; one of a sweep may be pruned, too: ended early by it. By a metric those come
    first whose last value is the best, where a run says which way that is, or else the highest.
    """
    from dtrain.cli.run_table import as_table, look_at, show, sort, trials_by_run
    from dtrain.cli.tables import finite
    from dtrain.format.runs import run_name, runs_in
    from dtrain.spec.words import in_line

    if not folder.is_dir():
        found = "is no folder" if folder.exists() else "does not exist"
        raise DtrainError(f"{folder} {found}; a folder of runs would do")
    trials = {} if sweep is None else trials_by_run(folder, sweep)
    wanted = [run for run in runs_in(folder) if name in (None, run_name(run))]
    rows = [look_at(run, trials.get(run.name)) for run in wanted if sweep is None or run.name in trials]
    rows = list(sort(rows, key))
    if as_json:
        click.echo(json.dumps(finite([as_table(row) for row in rows]), indent=2, allow_nan=False))
    elif rows:
        show(rows, key)
    else:
        of_name = "" if name is None else f" of the name {in_line(name)}"
        of_sweep = "" if sweep is None else f" of the sweep {in_line(sweep)}"
        how = "run" if sweep is None else "sweep"
        click.echo(f"{in_line(folder)} has no runs{of_name}{of_sweep}; `dtrain {how} RECIPE` makes one")
