"""The lock of a run that some process is working on; the system frees it when that process ends, however.

There are two files. Who works on a run holds `.lock`, which nobody touches who only looks; and `.running`,
which those who look hold together, for as long as it takes to see that they can. So a look is never in the
way of a run that starts. Over NFS both are locks of the server, seen from every machine that mounts it with
locks (not with `nolock` or `local_lock`).
"""

import fcntl
import shutil
import time
from collections.abc import Collection
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

from dtrain.errors import CheckpointError

LOCK, RUNNING = ".lock", ".running"
PATIENCE = 5.0  # seconds for those who look: they take microseconds, unless they are stopped


def lock(run: Path) -> ExitStack:
    """Hold a run until what is returned is closed. Raises CheckpointError if another process holds it."""
    with ExitStack() as stack:
        try:
            fcntl.flock(_opened(run / LOCK, stack), fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Of a run that was removed since the first was opened there is no second one.
            _show(_opened(run / RUNNING, stack))
        except BlockingIOError:
            raise CheckpointError(f"{run} is being worked on by another process") from None
        except OSError as error:
            raise CheckpointError(f"{run} cannot be locked: {error}") from None
        return stack.pop_all()


def try_lock(run: Path) -> ExitStack | None:
    """Hold a run until what is returned is closed; None if another process holds it."""
    try:
        return lock(run)
    except CheckpointError:
        return None


def remove_unused(run: Path, own: Collection[str] = ()) -> None:
    """Remove a run that this process holds, if there is nothing in it but its locks and `own` files.

    It is renamed first, so that who has opened its lock meanwhile does not get it.
    """
    with suppress(OSError):
        if {path.name for path in run.iterdir()} <= {LOCK, RUNNING, *own}:
            hidden = run.rename(run.with_name(f".{run.name}"))
            shutil.rmtree(hidden, ignore_errors=True)


def is_held(run: Path) -> bool:
    """Whether some process is working on a run: looked at without being in its way, or in that of a start."""
    try:
        with (run / RUNNING).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # nobody has begun, or it is not for us to see
        return False
    return False


def _opened(path: Path, stack: ExitStack) -> IO[bytes]:
    return stack.enter_context(path.open("ab"))


def _show(file: IO[bytes]) -> None:
    """Hold the file that others look at; where one of them holds it on and on, the run does without."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                return None
            time.sleep(0.001)
