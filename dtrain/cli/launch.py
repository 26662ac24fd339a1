"""dtrain launch: print what would be submitted to Slurm or Kubernetes."""

import re
from collections.abc import Callable, Sequence
from functools import reduce, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dtrain.cli.arguments import a_recipe, said_again, scale
from dtrain.errors import DtrainError
from dtrain.launch.filling import ENGINES, LAST_WORDS, LEAVES, Job, kubernetes, slurm

if TYPE_CHECKING:
    from dtrain.recipe.document import Document
    from dtrain.recipe.values import Recipe

EARLY = 60  # seconds by which Slurm may send the signal before its time

_SHARED = (
    click.option("--nodes", type=click.IntRange(min=1), required=True, help="Machines."),
    click.option("--devices", type=click.IntRange(min=1), required=True, help="GPUs of each machine to use."),
    click.option(
        "--engine", type=click.Choice(list(ENGINES)), help="How to keep models: as launch/NAME.yaml does."
    ),
    click.option("--config", type=click.Path(path_type=Path), help="A file of `accelerate config` instead."),
    scale,
    click.option(
        "--cpu", is_flag=True, help="Processes on CPUs; --devices is then how many on each machine."
    ),
    click.option(
        "--cores", type=click.IntRange(min=1), default=8, show_default=True, help="Cores for each process."
    ),
    click.option(
        "--grace",
        type=click.IntRange(min=LAST_WORDS + 10),
        default=120,
        show_default=True,
        help="Seconds from the wish to stop to the end; a step and a checkpoint must fit in.",
    ),
    click.option("--name", help="Of the job; otherwise that of the recipe."),
    click.option(
        "--runs",
        type=click.Path(path_type=Path),
        default=Path("runs"),
        show_default=True,
        help="The folder in which runs are kept.",
    ),
    click.option("--data-elsewhere", is_flag=True, help="The data is not here: check all but what it holds."),
)


def _of_a_job(command: Callable[..., None]) -> Callable[..., None]:
    """A command that is given a `Job`: the recipe checked, and what all schedulers ask for."""

    @wraps(command)
    def carry_out(
        recipe: Path,
        overrides: Sequence[str],
        set_files: Sequence[Path],
        untrusted: bool,
        trust: Sequence[str],
        nodes: int,
        devices: int,
        engine: str | None,
        config: Path | None,
        scale_file: Path | None,
        cpu: bool,
        cores: int,
        grace: int,
        name: str | None,
        runs: Path,
        data_elsewhere: bool,
        **own: Any,
    ) -> None:
        from dtrain.cli.trust import trust_of
        from dtrain.recipe.load import read

        document = read(recipe, overrides, set_files=set_files, trust=trust_of(untrusted, trust))
        loaded = _check(document, nodes * devices, data_elsewhere)
        _check_scale(document, loaded, engine, config, scale_file, nodes * devices)
        asked = said_again(recipe, overrides, set_files, untrusted, trust)
        asked += [] if scale_file is None else ["--scale", str(scale_file)]
        asked += ["--once"]  # it may be queued again when its run has just finished: nothing begins anew
        asked += [] if runs == Path("runs") else ["--runs", str(runs)]
        job = Job(
            name=loaded.name if name is None else name,
            recipe=str(recipe),
            command=["dtrain", "run", *asked],
            nodes=nodes,
            devices=devices,
            cores=cores,
            cpu=cpu,
            grace=grace,
            engine=ENGINES[engine or "ddp"] if config is None else ("--config_file", str(config)),
        )
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", job.name):
            raise DtrainError(
                f"--name {job.name!r} cannot be that of a job; letters, digits and dashes would do"
            )
        command(job, **own)

    return reduce(lambda inner, add: add(inner), reversed(_SHARED), a_recipe(carry_out))


def _check(document: "Document", processes: int, data_elsewhere: bool) -> "Recipe":
    """The recipe; raise RecipeErrors for what of it and its data would stop so many processes."""
    from dtrain.recipe.fit import check_data, check_shares
    from dtrain.recipe.load import from_document

    loaded = from_document(document, hashes=False)
    if data_elsewhere:
        check_shares(loaded, loaded.train.batch_size, processes)
    else:
        check_data(loaded, document, processes)
    return loaded


def _check_scale(
    document: "Document",
    loaded: "Recipe",
    engine: str | None,
    config: Path | None,
    scale_file: Path | None,
    processes: int,
) -> None:
    """Raise DtrainError where two places say how models are kept, or the recipe cannot be run so."""
    from dtrain.recipe.locate import located
    from dtrain.scale.asked import read_scale
    from dtrain.scale.fit import misfits
    from dtrain.scale.settings import environment_of
    from dtrain.world.launcher import contradictions, read_request, settings_asked

    if engine is not None and config is not None:
        raise DtrainError("--engine and --config both say how models are kept; give one of them")
    environment = LEAVES[engine or "ddp"] if config is None else environment_of(config)
    found = read_scale(environment, scale_file, loaded)
    if engine == "ddp" and found.engine.kind != "ddp":
        raise DtrainError(
            f"{scale_file} says engine.kind = {found.engine.kind!r}, and --engine says 'ddp'; keep one"
        )
    errors = list(misfits(loaded, found.engine))
    if config is not None:
        asked = settings_asked({}, read_request(["--config_file", str(config)], Path.cwd(), {}))
        clips = {name: optimizer.clip for name, optimizer in loaded.optimizers.items()}
        errors += contradictions(loaded.train, clips, processes, asked)
    if errors:
        raise located(document, errors)


@click.group()
def launch() -> None:
    """Print what would be submitted to run a recipe on many machines.

    The recipe is checked first, for as many processes as there will be. Nothing is submitted: pipe it to
    sbatch, or to kubectl apply -f -
    """


@launch.command("slurm")
@_of_a_job
@click.option(
    "--time", default="24:00:00", show_default=True, help="The limit of the job, as sbatch takes it."
)
@click.option("--partition", help="Where to queue.")
@click.option(
    "--sbatch", "options", metavar="OPTION", multiple=True, help="More of sbatch's: --sbatch=--mem=0"
)
@click.option("--before", metavar="COMMAND", multiple=True, help="First of all: 'source venv/bin/activate'")
def on_slurm(
    job: Job, time: str, partition: str | None, options: Sequence[str], before: Sequence[str]
) -> None:
    """Print a script for sbatch.

    The run is saved before the job's time is over and when it is preempted; the job then queues itself again,
    and carries on.
    """
    if _seconds(time) < job.grace + EARLY:
        raise DtrainError(f"--time {time!r} leaves nothing of --grace {job.grace} and the minute before")
    if strange := [option for option in options if not option.startswith("-")]:
        raise DtrainError(f"--sbatch {strange[0]!r} is no option of sbatch; --sbatch=--mem=200G would do")
    queue = [] if partition is None else [f"--partition={partition}"]
    click.echo(slurm(job, time=time, options=[*queue, *options], before=before), nl=False)


def _seconds(time: str) -> int:
    """A limit as sbatch takes it: minutes, m:s, h:m:s, d-h, d-h:m or d-h:m:s. Raises DtrainError."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if found is None:
        raise DtrainError(f"--time {time!r} is none of Slurm's; 24:00:00 or 2-12 (days-hours) would do")
    days, *rest = (None if part is None else int(part) for part in found.groups())
    first, second, third = rest
    if days is not None or third is not None:
        return ((days or 0) * 24 + (first or 0)) * 3600 + (second or 0) * 60 + (third or 0)
    return (first or 0) * 60 + (second or 0)


@launch.command("kubernetes")
@_of_a_job
@click.option("--image", required=True, help="The container's, with dtrain installed.")
@click.option(
    "--claim", required=True, help="A PersistentVolumeClaim with recipe, data and runs: /work there."
)
@click.option("--kind", type=click.Choice(["jobset", "trainjob"]), default="jobset", show_default=True)
@click.option("--restarts", type=click.IntRange(min=0), default=10, show_default=True, help="Of a JobSet.")
def on_kubernetes(job: Job, image: str, claim: str, kind: str, restarts: int) -> None:
    """Print a JobSet, or a TrainJob of Kubeflow.

    A pod that must go has the run saved first; all pods are made anew, and the run carries on.
    """
    click.echo(kubernetes(job, kind=kind, image=image, claim=claim, restarts=restarts), nl=False)
