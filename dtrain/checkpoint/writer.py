"""Saves while training goes on: the loop is held as long as its state is copied, a thread does the rest."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from dtrain.checkpoint.snapshot import Snapshot
from dtrain.checkpoint.write import Content, Ranks, write
from dtrain.engines.base import Engine


class Saves(Protocol):
    """What the loop asks of who saves."""

    def begin(self, engine: Engine, content: Content, then: Callable[[Path], None]) -> None:
        """Take up the state of an engine; `then` follows when it is saved. Collective."""
        ...

    def is_idle(self, seconds: float) -> bool:
        """Wait until nothing is being saved, for so long at most; whether that is so."""
        ...

    def finished(self, *, waits: bool) -> tuple[int, Path] | None:
        """The step and path of a checkpoint that became whole since this was last asked, if there is one."""
        ...


class Writer:
    """One checkpoint at a time: who begins another waits for it. A `with` resource of the main thread."""

    def __init__(self, run: Path, ranks: Ranks, shard_bytes: int):
        self._run, self._ranks, self._shard_bytes = run, ranks, shard_bytes
        self._snapshot = Snapshot()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dtrain-writer")
        self._latest: Future[tuple[int, Path] | None] | None = None

    def start(self, action: Callable[[], None]) -> None:
        """Begin with something else, at once: the first save waits for it."""
        self._latest = self._thread.submit(lambda: action())

    def begin(self, engine: Engine, content: Content, then: Callable[[Path], None]) -> None:
        """Copy the state of an engine and begin to write it; `then` follows when it is whole.

        Collective; `finished` was called before, so that none is being written.
        """
        assert self._latest is None
        shards = self._snapshot.take(engine, self._shard_bytes)

        def work() -> tuple[int, Path]:
            path = write(self._run, content, shards, self._snapshot, self._ranks)
            then(path)
            return content.step, path

        self._latest = self._thread.submit(work)

    def is_idle(self, seconds: float) -> bool:
        """Wait until nothing is being written, for so long at most; whether that is so."""
        return self._latest is None or not wait([self._latest], seconds).not_done

    def finished(self, *, waits: bool) -> tuple[int, Path] | None:
        """The step and path of a checkpoint that became whole since this was last asked, if there is one.

        With `waits` the one that is being written is waited for. Raises CheckpointError if it failed.
        """
        if self._latest is None or not (waits or self._latest.done()):
            return None
        future, self._latest = self._latest, None
        return future.result()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        """Wait for what is being written; if it fails after another exception, that one is raised alone."""
        try:
            with suppress(*([] if kind is None else [Exception])):
                self.finished(waits=True)
        finally:
            self._thread.shutdown()
