"""How a command ends: its exit status, and what is said once on each machine."""

import os
import sys
import time

from dtrain.spec.words import visible

DEFECT, MISTAKE, INTERRUPTED = 1, 2, 130
STOPPED = 143  # all is saved, start it again: as a shell says it of a process that SIGTERM ended
LOCAL_RANKS = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")
PATIENCE = 3.0  # seconds that a rank which says nothing leaves to the one that does


def refuse(message: str, *, name: str = "dtrain: ", is_shared: bool = True) -> int:
    """Say a mistake, and give the exit status.

    A launcher ends all processes with the first of them, so that one has to wait that says nothing.
    """
    complain(message, name=name, is_shared=is_shared)
    if is_shared and not speaks():
        time.sleep(PATIENCE)
    return MISTAKE


def complain(message: str, *, name: str = "dtrain: ", is_shared: bool = True) -> None:
    """Say something on stderr; what all ranks share is said once on each machine."""
    if speaks():
        print(f"{name}{visible(message)}", file=sys.stderr, flush=True)
    elif not is_shared:
        print(f"{name}rank {os.environ.get('RANK')}: {visible(message)}", file=sys.stderr, flush=True)


def speaks() -> bool:
    """Whether this process is the first of its machine."""
    return next((os.environ[name] for name in LOCAL_RANKS if name in os.environ), "0") == "0"
