"""A sweep handed to Slurm: an array of tasks, each of which works on trials."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import click

from dtrain.errors import DtrainError
from dtrain.launch.filling import slurm_array
from dtrain.sweep.setup import Setup


def submit(
    setup: Setup,
    words: Sequence[str],
    tasks: int,
    *,
    time: str,
    options: Sequence[str],
    before: Sequence[str],
) -> int:
    """Write the script and hand it to sbatch; `words` come after `dtrain sweep`.

    Raises DtrainError where there is no sbatch, or it does not take the script.
    """
    script = slurm_array(
        setup.name,
        words[0],
        ["python", "-m", "dtrain", "sweep", *words],
        tasks=tasks,
        time=time,
        output=str(setup.folder.absolute() / "slurm-%A_%a.out"),
        options=options,
        before=before,
    )
    path = written(setup, "slurm.sbatch", script)
    if shutil.which("sbatch") is None:
        raise DtrainError(f"there is no sbatch here; where there is one, this would do: sbatch {path}")
    found = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True, check=False)
    if found.returncode:
        raise DtrainError(f"sbatch does not take {path}: {found.stderr.strip()}")
    job = found.stdout.strip()
    click.echo(f"job         {job}, {tasks} tasks, as {path} says")
    click.echo(f"output      {setup.folder / f'slurm-{job}_*.out'}")
    return 0


def written(setup: Setup, name: str, text: str) -> Path:
    """A file in the sweep's folder. Raises DtrainError if it cannot be written."""
    path = setup.folder / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise DtrainError(f"{path} cannot be written: {error}") from None
    return path
