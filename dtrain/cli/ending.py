"""How a command ends: its exit status, and what is said once on each machine."""

import os
import sys

from dtrain.spec.words import visible

DEFECT, MISTAKE, INTERRUPTED = 1, 2, 130
STOPPED = 75  # a signal asked for it, all is saved: EX_TEMPFAIL of sysexits.h, "try again later"
LOCAL_RANKS = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")


def complain(message: str, *, name: str = "dtrain: ", is_shared: bool = True) -> None:
    """Say a mistake on stderr; one that all ranks share is said once on each machine."""
    if next((os.environ[name] for name in LOCAL_RANKS if name in os.environ), "0") == "0":
        print(f"{name}{visible(message)}", file=sys.stderr, flush=True)
    elif not is_shared:
        print(f"{name}rank {os.environ.get('RANK')}: {visible(message)}", file=sys.stderr, flush=True)
