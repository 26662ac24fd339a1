"""One process that fetches examples for the trainer.

Questions go over a pipe and arrays come back in anonymous shared memory: no copy passes through
a pipe or the trainer's interpreter, no thread works beside the trainer, and nothing has a name
that could outlive a crash.
"""

import ctypes
import faulthandler
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, NamedTuple

import numpy as np

from dtrain.data.source import Batch, Examples
from dtrain.errors import DataError

ALIGNMENT = 64  # bytes; a cache line, and all that vector instructions ask for
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


class Place(NamedTuple):
    """Where an array lies in shared memory."""

    field: str
    dtype: str
    shape: tuple[int, ...]
    offset: int  # bytes


class Layout(NamedTuple):
    """What follows as a file descriptor."""

    places: Sequence[Place]
    size: int  # bytes


class Failure(NamedTuple):
    """What follows is nothing: fetching failed."""

    message: str


class Worker:
    """A process that answers what it is asked in the order of asking; a `with` resource.

    It dies with the thread that opened it, so open it on one that lives as long as it is used.
    """

    def __init__(self, examples: Examples):
        self._examples = examples

    def __enter__(self) -> "Worker":
        # Not forked: a copy of a process with torch's threads in it may hang at any lock.
        context = multiprocessing.get_context("spawn")
        self._connection, far_end = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(self._examples, far_end, os.getpid()), daemon=True, name="dtrain data worker"
        )
        try:
            self._process.start()
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            self._connection.close()
            raise DataError(f"the data cannot be sent to workers ({error}); set workers = 0") from error
        finally:
            far_end.close()  # else its end would not be noticed
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()
        self._connection.close()

    def ask(self, indices: np.ndarray, epoch: int) -> None:
        """Ask for examples. Raises DataError if the process has died."""
        try:
            self._connection.send((indices, epoch))
        except OSError as error:
            raise self._death() from error

    def answer(self) -> Batch:
        """Wait for what was asked first and is not yet answered.

        Raises DataError if it could not be fetched, or if the process has died.
        """
        try:
            found: Layout | Failure = self._connection.recv()
            if isinstance(found, Failure):
                raise DataError(found.message)
            memory = recv_handle(self._connection)
        except (EOFError, OSError) as error:
            raise self._death() from error
        try:
            return _arrays(mmap.mmap(memory, found.size), found.places)
        finally:
            os.close(memory)

    def _death(self) -> DataError:
        self._process.join(5)  # seconds; a process closes its files a little before it has ended
        code = self._process.exitcode
        if code is not None and code < 0:
            return DataError(
                f"a data worker was killed by {signal.Signals(-code).name}, perhaps because memory ran out; "
                "fewer workers or smaller micro-batches need less"
            )
        return DataError(f"a data worker ended by itself (exit code {code}); its message stands further up")


def _serve(examples: Examples, connection: Connection, trainer: int) -> None:
    _live_and_die_with(trainer)
    faulthandler.enable()  # a worker that hangs is aborted, and shows where
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # the workers are the parallelism
    try:
        while True:
            indices, epoch = connection.recv()
            try:
                batch = examples.fetch(indices, epoch)
            except DataError as error:
                connection.send(Failure(str(error)))
            except Exception:
                connection.send(Failure(f"a data worker failed:\n{traceback.format_exc()}"))
            else:
                _send(connection, batch)
    except (EOFError, OSError):  # the trainer is gone
        return


def _live_and_die_with(trainer: int) -> None:
    """Let the trainer alone decide about signals to the whole group, and do not outlive it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != trainer:  # it died before the line above
        os._exit(1)


def _send(connection: Connection, batch: Batch) -> None:
    places, size = [], 0
    for field, values in batch.items():
        places.append(Place(field, values.dtype.str, values.shape, size))
        size += -(-values.nbytes // ALIGNMENT) * ALIGNMENT
    memory = _anonymous_memory()
    try:
        os.ftruncate(memory, size)
        for field, shared in _arrays(mmap.mmap(memory, size), places).items():
            np.copyto(shared, batch[field])
        connection.send(Layout(places, size))
        send_handle(connection, memory, None)
    finally:
        os.close(memory)


def _anonymous_memory() -> int:
    if sys.platform == "linux":
        return os.memfd_create("dtrain-batch")  # unlike /dev/shm, not limited to 64 MB in a container
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _arrays(memory: mmap.mmap, places: Sequence[Place]) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays in the mapped memory, which is unmapped when the last of them is gone."""
    return {place.field: np.ndarray(place.shape, place.dtype, memory, place.offset) for place in places}
