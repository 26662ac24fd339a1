"""The processes that train together: how many were started, by what, and whether that is what was asked for.

Nothing here imports torch: a wrong world is refused, and a right one tied to its launcher, before that.
"""

import argparse
import ctypes
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dtrain.errors import LaunchError


@dataclass(frozen=True)
class World:
    """All processes of one run, and this one's place among them."""

    rank: int  # of this process among all
    size: int
    local_rank: int  # of this process among those of its machine
    local_size: int
    launcher: str | None  # accelerate | torchrun | mpirun | srun; None where nothing but a shell started us
    parent: int  # the process that was our parent when the world was read
    precision_of_launcher: str  # what `accelerate launch` was told; unused, for train.precision decides
    cpu: bool  # `accelerate launch --cpu`: stay on the CPU even where there are GPUs
    threads: int  # torch threads of each process
    address: str  # where the ranks find each other: rank 0's host and port
    port: int
    store_exists: bool  # torchelastic's agent holds the key-value store; otherwise rank 0 opens it
    restart: int  # how often torchelastic has started these ranks again


# launcher, then the variables of rank, size, local rank, local size. The first complete line counts: Open MPI
# and MPICH start their daemons with srun where there is Slurm, so SLURM_* then describes the daemons.
_VARIABLES = (
    ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("mpirun", *(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))),
    ("mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
)

# What `accelerate launch` tells its processes to use, and dtrain has no engine for.
_OTHER_ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "Accelerate's parallelism_config",
}


def read_world(environment: Mapping[str, str]) -> World:
    """Read the world from what the launcher left in `environment`, and from the launcher's command line.

    Raises LaunchError where Accelerate was asked for one number of processes and started another, where it
    was asked for an engine that dtrain lacks, and where the variables contradict each other.
    """
    parent = os.getppid()
    for variable, engine in _OTHER_ENGINES.items():
        if environment.get(variable, "").lower() == "true":
            raise LaunchError(
                f"the launcher asks for {engine} ({variable}={environment[variable]}), but dtrain has no "
                f"engine for {engine} yet; use launch/ddp.yaml, which runs DistributedDataParallel"
            )
    launcher, rank, size, local_rank, local_size = _read_ranks(environment)
    # Every way through `accelerate launch` sets both; a user who exports a precision sets one.
    if "ACCELERATE_MIXED_PRECISION" in environment and "ACCELERATE_DYNAMO_BACKEND" in environment:
        launcher = "accelerate"
        _check_request(environment, size)
    address = environment.get("MASTER_ADDR", "")
    if not address and local_size != size:
        raise LaunchError(
            f"{launcher} started {size} processes on several machines, but MASTER_ADDR is not set; "
            "set it to the host name of rank 0"
        )
    return World(
        rank=rank,
        size=size,
        local_rank=local_rank,
        local_size=local_size,
        launcher=launcher,
        parent=parent,
        precision_of_launcher=environment.get("ACCELERATE_MIXED_PRECISION", "no"),
        cpu=environment.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"),
        threads=_integer(environment, "OMP_NUM_THREADS", "1"),
        address=address or "127.0.0.1",
        port=_integer(environment, "MASTER_PORT", "29500"),
        store_exists=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        restart=_integer(environment, "TORCHELASTIC_RESTART_COUNT", "0"),
    )


def tie_to_launcher(world: World) -> None:
    """Make the kernel end this process when its launcher dies, on Linux; without a launcher do nothing.

    `accelerate launch` does not forward SIGTERM to a single process, and a launcher that is killed outright
    forwards nothing: the training would go on, unseen. A plain `dtrain run` has no launcher and survives the
    end of its shell. Raises LaunchError where the launcher has died already.
    """
    if world.launcher is None or sys.platform != "linux":
        return
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != world.parent:
        raise LaunchError(f"{world.launcher}, which started this process, has ended; start it again")


def _read_ranks(environment: Mapping[str, str]) -> tuple[str | None, int, int, int, int]:
    """Return the launcher, rank, size, local rank and local size: a world of one where there are none."""
    for launcher, *names in _VARIABLES:
        if not all(name in environment for name in names):
            continue
        rank, size, local_rank, local_size = (_integer(environment, name) for name in names)
        if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
            found = ", ".join(f"{name}={environment[name]}" for name in names)
            raise LaunchError(f"{found} describe no process of any world; unset them, or use torchrun")
        # The first four alone may have been set by hand, or by a scheduler that ends its processes itself.
        by_hand = launcher == "torchrun" and "TORCHELASTIC_RUN_ID" not in environment
        return None if by_hand else launcher, rank, size, local_rank, local_size
    if _integer(environment, "WORLD_SIZE", "1") > 1:
        missing = [name for name in _VARIABLES[0][1:] if name not in environment]
        raise LaunchError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']}, but these are not set: {', '.join(missing)}; "
            "set them too, or let torchrun set them all"
        )
    return None, 0, 1, 0, 1


def _integer(environment: Mapping[str, str], name: str, default: str = "") -> int:
    """Read the number at the start of a variable: Slurm writes 2(x3), OpenMP 4,2."""
    text = environment.get(name, default)
    digits = re.match(r"\d+", text)
    if digits is None:
        raise LaunchError(f"the environment variable {name} is {text!r}, which is not a number; unset it")
    return int(digits[0])


def _check_request(environment: Mapping[str, str], size: int) -> None:
    """Raise LaunchError if the `accelerate launch` above this process was asked for another world.

    Accelerate 1.15 starts one process and says nothing for `--cpu --num_processes 2`, for `--num_processes 2`
    without GPUs, and for a file with `distributed_type: MULTI_CPU`: only `multi_gpu` leads to several.
    """
    import psutil  # type: ignore[import-untyped]

    command = psutil.Process().cmdline()
    for ancestor in psutil.Process().parents():
        try:
            if _is_accelerate_launch(ancestor.cmdline()):
                options = _without_common_end(ancestor.cmdline(), command)
                _compare(*_requested(options, Path(ancestor.cwd()), environment), size)
                return
            command = ancestor.cmdline()
        except psutil.Error:  # it has ended, or belongs to somebody else: nothing to compare with
            continue
    if os.getppid() == 1:  # given to the first process, because the launcher died while Python started
        raise LaunchError("accelerate launch, which started this process, has ended; start it again")


def _is_accelerate_launch(command: Sequence[str]) -> bool:
    # accelerate launch | accelerate-launch | -m accelerate.commands.launch | accelerate/commands/launch.py
    return re.search(r"\baccelerate(-|\S* |[./]commands[./])launch\b", " ".join(command)) is not None


def _without_common_end(command: Sequence[str], child: Sequence[str]) -> list[str]:
    """Return the launcher's command without the program it starts, whose options may bear the same names."""
    kept = list(command)
    rest = list(child)
    while kept and rest and kept[-1] == rest[-1]:
        kept.pop()
        rest.pop()
    return kept


def _requested(
    options: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> tuple[int | None, int | None, str]:
    """Return the processes and machines that were asked for (None: not said), and where."""
    # Accelerate's own parser would import torch: 3 s in which this process is not tied to its launcher.
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--num_processes", "--num-processes", type=int)
    parser.add_argument("--num_machines", "--num-machines", type=int)
    parser.add_argument("--config_file", "--config-file", type=Path)
    parser.add_argument("--cpu", action="store_true")
    asked, _ = parser.parse_known_args(options)
    file = _default_config(environment) if asked.config_file is None else folder / asked.config_file
    is_read = asked.config_file is not None or (file.is_file() and not asked.cpu)  # as Accelerate decides
    settings = _read_settings(file) if is_read else {}
    where = "`accelerate launch`" if asked.num_processes else str(file)
    processes = asked.num_processes or settings.get("num_processes")
    machines = asked.num_machines or settings.get("num_machines")
    if not processes or processes < 0:  # -1 stands for "on the command line"
        return None, machines, "`accelerate launch`" if asked.num_machines else str(file)
    return processes, machines, where


def _default_config(environment: Mapping[str, str]) -> Path:
    """Return where `accelerate config` keeps the file that is read without --config_file."""
    cache = Path(environment.get("XDG_CACHE_HOME", "~/.cache"))
    folder = Path(environment.get("HF_HOME", cache / "huggingface")).expanduser() / "accelerate"
    newer, older = folder / "default_config.yaml", folder / "default_config.json"
    return older if older.is_file() and not newer.is_file() else newer


def _read_settings(file: Path) -> dict[str, int]:
    import yaml  # type: ignore[import-untyped]  # Accelerate brings it; JSON is YAML

    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError:  # a pipe such as /dev/fd/63, read by the launcher already
        return {}
    numbers = ("num_processes", "num_machines")
    return {name: int(settings[name]) for name in numbers if settings.get(name) is not None}


def _compare(processes: int | None, machines: int | None, where: str, size: int) -> None:
    if processes is None:
        processes = max(machines or 1, size)  # nothing but machines was asked for: at least one process each
    if processes == size:
        return
    if processes < size:
        cure = "start `dtrain run ...` with one launcher only"
    else:
        cure = (
            "without GPUs start it with `accelerate launch --config_file launch/cpu-2.yaml dtrain run ...`, "
            f"or anywhere with `accelerate launch --multi_gpu --num_processes {processes} dtrain run ...`"
        )
    raise LaunchError(
        f"{where} asks for {processes} process{'es' * (processes > 1)}, "
        f"but Accelerate started {size} without a warning; {cure}"
    )
