"""dtrain sweep: train a recipe many times, with other values of some keys."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from dtrain.cli.arguments import overrides as overrides_argument
from dtrain.cli.arguments import recipe as recipe_argument
from dtrain.cli.arguments import scale as scale_option
from dtrain.cli.arguments import set_files as set_files_option
from dtrain.cli.ending import INTERRUPTED, MISTAKE, STOPPED, complain


@click.command()
@recipe_argument
@overrides_argument
@set_files_option
@scale_option
@click.option(
    "--parallel", type=click.IntRange(min=1), default=1, show_default=True, help="Trials at a time."
)
@click.option("--devices", metavar="0,1,...", help="GPUs, shared evenly by the trials at a time.")
@click.option(
    "--config", type=click.Path(path_type=Path), help="A file of `accelerate config` for each trial."
)
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="The folder in which runs are kept, and sweeps in `sweeps`.",
)
@click.option("--retry", is_flag=True, help="Train trials again that failed.")
@click.option("--dry-run", is_flag=True, help="Print the recipes of the trials, and train none.")
def sweep(
    recipe: Path,
    overrides: Sequence[str],
    set_files: Sequence[Path],
    scale_file: Path | None,
    parallel: int,
    devices: str | None,
    config: Path | None,
    runs: Path,
    retry: bool,
    dry_run: bool,
) -> int:
    """Train the trials of a recipe's [sweep], each once, and compare them.

    A recipe that was trained already, by this sweep or another one in the same folder, is not trained again.
    Whatever ends a sweep: the same command trains what is missing, and carries on what was cut off.
    """
    from dtrain.recipe.load import read
    from dtrain.sweep.process import Launch
    from dtrain.sweep.setup import grouped, open_setup

    document = read(recipe, overrides, set_files=set_files)
    sys.path.append(str(recipe.parent.absolute()))  # a recipe's own modules may lie beside it
    threads = max((os.cpu_count() or 1) // parallel, 1)
    launch = Launch(runs, config, scale_file, recipe.parent, threads)
    groups = [] if devices is None else grouped([name for name in devices.split(",") if name], parallel)
    setup = open_setup(document, launch, groups)
    if dry_run:
        from dtrain.sweep.listing import listing

        for line in listing(setup):
            click.echo(line)
        return 0

    from dtrain.cli.sweep_table import open_watcher, print_results
    from dtrain.stopping import Signals
    from dtrain.sweep.drive import drive
    from dtrain.sweep.results import write_results
    from dtrain.sweep.study import Study

    study = Study(setup.folder, setup.sweep, setup.identity, setup.mode, setup.steps)
    with Signals(complain) as signals, open_watcher(setup, study) as watcher:
        why = drive(
            setup,
            study,
            parallel=parallel,
            retry=retry,
            watcher=watcher,
            asked=lambda: signals.first is not None,
        )
    write_results(setup, study)
    print_results(setup, study)
    if signals.first is not None:
        complain("stopped; the same command carries on")
        return INTERRUPTED if signals.first == signal.SIGINT else STOPPED
    if why is not None:
        complain(f"{why}; with more sweep.minutes the same command carries on")
        return STOPPED
    return MISTAKE if all(record.value is None for record in study.records()) else 0
