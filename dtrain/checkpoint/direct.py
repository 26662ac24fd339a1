"""Writes large files past the system's cache, where that can be: quicker, and it takes no memory for them."""

import errno
import fcntl
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

import numpy as np
import numpy.typing as npt

BLOCK = 1 << 22  # bytes that are written at once
BLOCKS = 4  # of which some are on their way to the disk while one is filled
UNIT = 4096  # bytes, of which whole ones are written past the cache
PAST_CACHE = getattr(os, "O_DIRECT", 0)

Block = npt.NDArray[np.uint8]


class Disk:
    """A thread that writes blocks of files in their order, and the blocks, which are used again and again.

    One file is written to after the other: each keeps a block from its beginning to its end.
    """

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, "dtrain-write")
        self.free: SimpleQueue[Block] = SimpleQueue()
        for _ in range(BLOCKS):
            self.free.put(np.frombuffer(mmap.mmap(-1, BLOCK), np.uint8))  # each begins a page

    def __enter__(self) -> "Disk":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.thread.shutdown()


class DirectFile:
    """A file that is written from its start to its end, one block filled while those before are on their way.

    Where the file system cannot go past the cache, it is written through it.
    """

    def __init__(self, path: Path, disk: Disk):
        """Begin a file, anew if it is there. Raises OSError if it cannot be made."""
        self.size = 0  # bytes so far
        self._descriptor, self._is_direct = _open(path)
        self._disk = disk
        self._block = disk.free.get()
        self._filled = 0  # bytes of the block
        self._problem: BaseException | None = None  # of a block

    def write(self, data: bytes | memoryview) -> None:
        """Take in bytes; full blocks go to the disk. Raises OSError if one of those before could not."""
        values = np.frombuffer(data, np.uint8)
        self.size += len(values)
        while len(values):
            taken = values[: BLOCK - self._filled]
            place = self._block[self._filled : self._filled + len(taken)]
            np.copyto(place, taken)  # without the interpreter's lock: who trains is not held
            self._filled += len(taken)
            values = values[len(taken) :]
            if self._filled == BLOCK:
                self._disk.thread.submit(self._put, self._block, BLOCK)
                self._block = self._disk.free.get()
                self._filled = 0
                if self._problem is not None:
                    raise self._problem

    def end(self) -> Future[None]:
        """Write what is left, wait for the disk, and close; what raises OSError if anything went wrong."""
        return self._disk.thread.submit(self._finish)

    def _finish(self) -> None:
        try:
            self._put(self._block, -(-self._filled // UNIT) * UNIT)
            if self._problem is not None:
                raise self._problem
            os.truncate(self._descriptor, self.size)
            os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)

    def _put(self, block: Block, size: int) -> None:
        left = block.data[:size]
        try:
            while left and self._problem is None:
                if not (count := self._write(left)):
                    raise OSError(errno.EIO, "nothing was written")
                left = left[count:]
        except BaseException as error:  # whatever it is, the file lacks a block
            self._problem = error
        finally:
            self._disk.free.put(block)

    def _write(self, data: memoryview) -> int:
        try:
            return os.write(self._descriptor, data)
        except OSError as error:
            if not self._is_direct or error.errno != errno.EINVAL:
                raise
        self._is_direct = False  # it takes bytes of other places, or more at a time, only
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~PAST_CACHE)
        return os.write(self._descriptor, data)


def _open(path: Path) -> tuple[int, bool]:
    """A new file, and whether it is written past the cache."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    if PAST_CACHE:
        try:
            return os.open(path, flags | PAST_CACHE, 0o666), True
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    return os.open(path, flags, 0o666), False
