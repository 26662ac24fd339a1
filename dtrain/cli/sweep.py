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
    click.option("--time", default="24:00:00", show_default=True, help="The limit of each task under Slurm."),
    click.option("--sbatch", "options", metavar="OPTION", multiple=True, help="More of sbatch's."),
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
    try:
        import optuna  # noqa: F401
        import plotly  # noqa: F401
    except ImportError as error:
        raise DtrainError(f"a sweep needs {error.name}; pip install 'dtrain[sweep]' would do") from None
    from dtrain.recipe.load import read
    from dtrain.recipe.locate import locating
    from dtrain.sweep.process import Launch
    from dtrain.sweep.setup import grouped, open_setup

    document = read(recipe, overrides, set_files=set_files)
    sys.path.append(str(recipe.parent.absolute()))  # a recipe's own modules may lie beside it
    groups = [] if devices is None else grouped([name for name in devices.split(",") if name], parallel)
    setup = open_setup(document, Launch(runs, config, scale_file, recipe.parent), groups)
    again = said_again(recipe, overrides, set_files, False, ())
    if dry_run:
        from dtrain.sweep.listing import listing

        for line in listing(setup):
            click.echo(line)
        return 0
    if report:
        return _report(setup)
    if to_wandb:
        with locating(document):
            return _to_wandb(setup, again)
    if submit is not None:
        own = ["--runs", str(runs), *([] if config is None else ["--config", str(config)])]
        own += [] if scale_file is None else ["--scale", str(scale_file)]
        return _submit(setup, [*again, *own, *(["--retry"] if retry else [])], parallel, **of_slurm)
    return _train(setup, parallel, retry)


def _train(setup: "Setup", parallel: int, retry: bool) -> int:
    from dtrain.cli.sweep_table import open_watcher, print_results
    from dtrain.stopping import Signals
    from dtrain.sweep.drive import drive
    from dtrain.sweep.results import write_results
    from dtrain.sweep.study import open_study

    study = open_study(setup)
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


def _report(setup: "Setup") -> int:
    from dtrain.sweep.report import write_report
    from dtrain.sweep.study import open_study

    study = open_study(setup)
    if not study.records():
        raise DtrainError(f"{setup.folder} has no trials yet; without --report they are trained")
    click.echo(f"report      {write_report(setup, study)}")
    return 0


def _to_wandb(setup: "Setup", again: Sequence[str]) -> int:
    from dtrain.sweep.wandb_file import wandb_file

    path = _written(setup, "wandb.yaml", wandb_file(setup, again))
    click.echo(f"wandb sweep {path}\n  then, where it is to be trained: wandb agent SWEEP")
    return 0


def _submit(
    setup: "Setup",
    words: Sequence[str],
    parallel: int,
    time: str,
    options: Sequence[str],
    before: Sequence[str],
) -> int:
    """Hand an array of tasks to sbatch, each of which works on trials of the sweep."""
    import shutil
    import subprocess

    from dtrain.launch.filling import slurm_array

    script = slurm_array(
        setup.name,
        str(words[0]),
        ["python", "-m", "dtrain", "sweep", *words],
        tasks=parallel,
        time=time,
        output=str(setup.folder.absolute() / "slurm-%A_%a.out"),
        options=options,
        before=before,
    )
    path = _written(setup, "slurm.sbatch", script)
    if shutil.which("sbatch") is None:
        raise DtrainError(f"there is no sbatch here; where there is one, this would do: sbatch {path}")
    found = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True, check=False)
    if found.returncode:
        raise DtrainError(f"sbatch does not take {path}: {found.stderr.strip()}")
    click.echo(f"job         {found.stdout.strip()}, {parallel} tasks, as {path} says")
    click.echo(f"output      {setup.folder / f'slurm-{found.stdout.strip()}_*.out'}")
    return 0


def _written(setup: "Setup", name: str, text: str) -> Path:
    path = setup.folder / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise DtrainError(f"{path} cannot be written: {error}") from None
    return path
