"""Locks of a sweep: the system frees them when their holders end, however; over NFS they are the server's."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dtrain.errors import DtrainError

LOOKS = 10  # at a lock, before it is somebody's
LONGEST = 1 << 20  # bytes of a line of the journal


class Lock:
    """The journal's lock, which the system frees, whatever becomes of its holder.

    Optuna's own is a file that somebody who is killed leaves behind. A line that was torn is cut off.
    """

    def __init__(self, journal: Path):
        self._journal = journal
        self._file: IO[bytes] | None = None

    def acquire(self) -> bool:
        self._file = self._journal.with_suffix(".lock").open("ab")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        with self._journal.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - LONGEST, 0))
            torn = file.read().rpartition(b"\n")[2]
            if torn:
                file.truncate(size - len(torn))
        return True

    def release(self) -> None:
        assert self._file is not None
        self._file.close()


def try_hold(path: Path) -> IO[bytes] | None:
    """A file, locked until it is closed by this process and by all that it was handed on to; or None.

    Those who only look, as `records` does, have it for microseconds.
    """
    file = path.open("ab")
    for _ in range(LOOKS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            time.sleep(0.005)
    file.close()
    return None


def is_held(path: Path) -> bool:
    """Whether somebody has a lock, seen without being in the way of whoever wants it."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Wait for a lock and hold it."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def join(path: Path, identity: str, name: str) -> IO[bytes]:
    """Work on a sweep together with those of the same identity alone, until what is returned is closed.

    Raises DtrainError where another sweep of this name is being worked on.
    """
    file = path.open("ab+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(identity.encode())
        file.flush()
    except BlockingIOError:
        pass
    fcntl.flock(file, fcntl.LOCK_SH)
    file.seek(0)
    if file.read().decode() != identity:
        file.close()
        said = f"another sweep of the name {name} is being worked on; a sweep.name of its own would do"
        raise DtrainError(said)
    return file
