"""The processes that train together: how many were started, by what, and whether that is what was asked for.

Nothing here imports torch: a wrong world is refused, and a right one tied to its launcher, before that.
"""

import ctypes
import os
import re
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from dtrain.errors import LaunchError
from dtrain.world.launcher import Asked, check_size, find_request, settings_asked


@dataclass(frozen=True)
class World:
    """All processes of one run, and this one's place among them."""

    rank: int  # of this process among all
    size: int
    local_rank: int  # of this process among those of its machine
    local_size: int
    launcher: str | None  # accelerate | torchrun | mpirun | srun; None where nothing but a shell started us
    parent: int  # the process that was our parent when the world was read
    asked: Mapping[str, Asked]  # what the launcher was told of precision and the like; the recipe decides
    cpu: bool  # `accelerate launch --cpu`: stay on the CPU even where there are GPUs
    threads: int  # torch threads of each process
    address: str  # where the ranks find each other: rank 0's host and port
    port: int
    store_exists: bool  # torchelastic's agent holds the key-value store; otherwise rank 0 opens it


# launcher, then the variables of rank, size, local rank, local size. The first complete line counts: Open MPI
# and MPICH start their daemons with srun where there is Slurm, so SLURM_* then describes the daemons.
_VARIABLES = (
    ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("mpirun", *(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))),
    ("mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
)


def read_world(environment: Mapping[str, str]) -> World:
    """Read the world from what the launcher left in `environment`, and from the launcher's command line.

    Raises LaunchError where Accelerate was asked for one number of processes and started another, and where
    the variables contradict each other.
    """
    parent = os.getppid()
    launcher, rank, size, local_rank, local_size = _read_ranks(environment)
    request = None
    # Every way through `accelerate launch` sets two of these; a user who exports a precision sets one.
    if (
        "ACCELERATE_MIXED_PRECISION" in environment
        and {
            "ACCELERATE_DYNAMO_BACKEND",
            "ACCELERATE_USE_DEEPSPEED",
        }
        & environment.keys()
    ):
        launcher = "accelerate"
        request = find_request(environment)
        check_size(request, size)
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
        asked=settings_asked(environment, request),
        cpu=environment.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"),
        threads=_integer(environment, "OMP_NUM_THREADS", "1"),
        address=address or "127.0.0.1",
        port=_integer(environment, "MASTER_PORT", "29500"),
        store_exists=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
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
