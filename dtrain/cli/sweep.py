"""dtrain sweep: train a recipe many times, with other values of some keys."""

import signal
import sys
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dtrain.cli.arguments import overrides as overrides_argument
from dtrain.cli.arguments import recipe as recipe_argument
from dtrain.cli.arguments import said_again
from dtrain.cli.arguments import scale as scale_option
from dtrain.cli.arguments import set_files as set_files_option
from dtrain.cli.ending import INTERRUPTED, MISTAKE, STOPPED, complain
from dtrain.errors import DtrainError

if TYPE_CHECKING:
    from dtrain.sweep.setup import Setup

OPTIONS = (
    click.option(
        "--parallel", type=click.IntRange(min=1), default=1, show_default=True, help="Trials at a time."
    ),
    click.option("--devices", metavar="0,1,...", help="GPUs, shared evenly by the trials at a time."),
    click.option(
        "--config", type=click.Path(path_type=Path), help="A file of `accelerate config`, for each trial."
    ),
    scale_option,
    click.option(
        "--runs",
        type=click.Path(path_type=Path),
        default=Path("runs"),
        show_default=True,
        help="The folder in which runs are kept; sweeps lie in its folder `sweeps`.",
    ),
    click.option("--retry", is_flag=True, help="Train those trials once more that failed."),
    click.option("--dry-run", is_flag=True, help="Print the recipes of the trials, and train none."),
    click.option("--report", is_flag=True, help="Write report.html of what there is, and train none."),
    click.option("--to-wandb", is_flag=True, help="Write the same sweep for W&B's agents, and train none."),
    click.option(
        "--submit", type=click.Choice(["slurm"]), help="Hand it to sbatch: an array of --parallel tasks."
    ),
    click.option("--time", help="The limit of each task under Slurm.  [default: 24:00:00]"),
    click.option("--sbatch", "options", metavar="OPTION", multiple=True, help="More of sbatch's, for Slurm."),
    click.option(
        "--before", metavar="COMMAND", multiple=True, help="First in a task: 'source venv/bin/activate'"
    ),
)


def _with_options(command: Callable[..., int]) -> Callable[..., int]:
    shared = (recipe_argument, overrides_argument, set_files_option, *OPTIONS)
    return reduce(lambda inner, add: add(inner), reversed(shared), command)


@click.command()
@_with_options
def sweep(
    recipe: Path,
    overrides: Sequence[str],
    set_files: Sequence[Path],
    parallel: int,
    devices: str | None,
    config: Path | None,
    scale_file: Path | None,
    runs: Path,
    retry: bool,
    dry_run: bool,
    report: bool,
    to_wandb: bool,
    submit: str | None,
    **of_slurm: Any,
) -> int:
    """Train the trials of a recipe's [sweep], each once, and compare them.

    A recipe that was trained already, by this sweep or another one in the same folder, is not trained again.
    Whatever ends a sweep: the same command carries on what was cut off, and trains what is missing.
    """
    if sum((dry_run, report, to_wandb, submit is not None)) > 1:
        raise DtrainError("--dry-run, --report, --to-wandb and --submit each do something else; give one")
    if submit is None and any(of_slurm.values()):
        raise DtrainError("--time, --sbatch and --before are Slurm's; --submit slurm belongs to them")
    if submit is not None and (retry or devices is not None):
        said = "--retry is for a sweep that runs here" if retry else "--devices are those here"
        raise DtrainError(
            f"{said}; --submit slurm takes none" + ("" if retry else ": --sbatch=--gpus=1 would do")
        )
    try:
        import optuna  # noqa: F401
        import plotly  # noqa: F401
    except ImportError as error:
        raise DtrainError(f"a sweep needs {error.name}; pip install 'dtrain[sweep]' would do") from None
    from dtrain.recipe.load import read
    from dtrain.recipe.locate import locating
    from dtrain.sweep.process import Launch
    from dtrain.sweep.setup import check_devices, check_overrides, grouped, open_setup

    document = read(recipe, overrides, set_files=set_files)
    if document.trust.everything:
        sys.path.append(str(recipe.parent.absolute()))  # a recipe's own modules may lie beside it
    named = [name for name in (devices or "").split(",") if name]
    groups = [] if devices is None else grouped(named, parallel)
    check_devices(named)
    setup = open_setup(document, Launch(runs, config, scale_file, recipe.parent), groups)
    check_overrides(setup, overrides)
    again = said_again(recipe, overrides, set_files, False, ())
    if dry_run:
        from dtrain.sweep.listing import listing

        for line in listing(setup):
            click.echo(line)
        return 0
    if report:
        return _report(setup)
    own = ["--runs", str(runs), *([] if scale_file is None else ["--scale", str(scale_file)])]
    if to_wandb:
        with locating(document):
            return _to_wandb(setup, [*again, *own])
    if submit is not None:
        from dtrain.cli.sweep_slurm import submit as hand_to_slurm

        own += [] if config is None else ["--config", str(config)]
        time = of_slurm.pop("time") or "24:00:00"
        return hand_to_slurm(setup, [*again, *own], parallel, time=time, **of_slurm)
    return _train(setup, parallel, retry)


def _train(setup: "Setup", parallel: int, retry: bool) -> int:
    from dtrain.cli.sweep_table import open_watcher, print_results
    from dtrain.stopping import Signals
    from dtrain.sweep.drive import drive
    from dtrain.sweep.locks import join
    from dtrain.sweep.results import set_aside, write_results
    from dtrain.sweep.study import open_study

    study = open_study(setup)
    with (
        join(setup.folder / ".sweeping", setup.identity, setup.name),
        Signals(complain) as signals,
        open_watcher(setup, study) as watcher,
    ):
        for path in set_aside(setup):
            click.echo(f"another sweep of this name is kept as {path}")
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
    states = [record.state for record in study.records()]
    return MISTAKE if "failed" in states and "finished" not in states else 0


def _report(setup: "Setup") -> int:
    from dtrain.sweep.report import write_report
    from dtrain.sweep.study import open_study

    study = open_study(setup) if setup.folder.is_dir() else None
    if study is None or not study.records():
        raise DtrainError(f"{setup.folder} has no trials of this sweep; without --report they are trained")
    click.echo(f"report      {write_report(setup, study)}")
    return 0


def _to_wandb(setup: "Setup", again: Sequence[str]) -> int:
    from dtrain.cli.sweep_slurm import written
    from dtrain.sweep.wandb_file import wandb_file

    path = written(setup, "wandb.yaml", wandb_file(setup, again))
    click.echo(f"wandb sweep {path}\n  then, where it is to be trained: wandb agent SWEEP")
    return 0
