"""Who works on the copy of a run: one process at a time, wherever it is.

In a folder that is a lock, as of our own runs. At a URL nothing can be locked: there a file says who it is,
and is written anew every `BEAT` seconds. Who finds one watches it: if it changes somebody is at work; if it
does not within `PATIENCE` whoever wrote it is gone. Clocks are not compared. The life of a run that follows
another on the same machine needs not watch: it has that one's token, and the lock of the run's own folder.
"""

import json
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from dtrain.errors import CheckpointError
from dtrain.format.files import write_synced
from dtrain.format.locks import lock, remove_unused
from dtrain.format.stores import Store
from dtrain.format.urls import Remote

BEAT = 20.0  # seconds between two signs of life
PATIENCE = 100.0  # seconds without one, after which nobody is there: longer than a beat is tried again
SETTLE = 3.0  # seconds in which two who begin at once have both written; the later one has it
GOODBYE = 5.0  # seconds for a sign of life that is on its way when the run ends
HELD = "held.json"  # beside the copy's recipe.toml
TOKEN = ".held"  # in the run's own folder: by what its latest life is known there


class HeldError(CheckpointError):
    """Another process is at work on a run."""


@contextmanager
def hold(store: Store, run: Path) -> Iterator[Callable[[], None]]:
    """Hold the copy of a run that lies in `run` here; what is yielded raises HeldError if it was lost.

    The run's own folder is locked by this process, or there is none yet. Raises HeldError if another process
    is at work on it.
    """
    if isinstance(store, Remote):
        lease = _Lease(store, run)
        lease.take()
        try:
            yield lease.check
        finally:
            lease.give_back()
        return
    folder = Path(store.at(run.name))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be made: {error}") from None
    try:
        held = lock(folder)
    except CheckpointError as error:
        raise HeldError(str(error)) from None
    held.callback(remove_unused, folder)
    with held:
        yield lambda: None


class _Lease:
    def __init__(self, store: Remote, run: Path):
        self._store, self._file, self._run = store, f"{run.name}/{HELD}", run
        self._token, self._count = secrets.token_hex(8), 0
        self._end, self._writing = Event(), Lock()
        self._thread = Thread(target=self._beat, name="dtrain-lease", daemon=True)

    def take(self) -> None:
        """Make it ours. Raises HeldError if it is another's, who is alive."""
        found = self._store.read(self._file)
        if found is not None and _said(found).get("token") != self._latest_here():
            self._watch(found)
        self._write()
        if found is not None or self._store.entries(f"{self._run.name}/checkpoints"):  # not a new run's
            time.sleep(SETTLE)
            self.check()
        try:
            self._run.mkdir(parents=True, exist_ok=True)
            write_synced(self._run / TOKEN, self._token.encode())
        except OSError as error:
            raise CheckpointError(f"{self._run / TOKEN} cannot be written: {error}") from None
        self._thread.start()

    def check(self) -> None:
        """Raise HeldError if another process has taken it."""
        said = _said(self._store.read(self._file) or b"{}")
        if said and said.get("token") != self._token:
            raise self._held(said)

    def give_back(self) -> None:
        """Let the next one have it at once; one that was lost stays."""
        self._end.set()
        if self._store.answers and self._writing.acquire(timeout=GOODBYE):
            try:
                with suppress(CheckpointError):
                    self.check()
                    self._store.delete(self._file)
            finally:
                self._writing.release()

    def _watch(self, found: bytes) -> None:
        """Wait until it is clear whether somebody is at work."""
        host = _said(found).get("host", "another machine")
        said = f"dtrain: looking for {PATIENCE:.0f} s whether {host} still works on"
        print(said, self._store.at(self._run.name), file=sys.stderr, flush=True)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            time.sleep(min(2.0, PATIENCE / 10))
            now = self._store.read(self._file)
            if now is None:
                return
            if now != found:
                raise self._held(_said(now))

    def _write(self) -> None:
        self._count += 1
        said = {"host": socket.gethostname(), "token": self._token, "count": self._count}
        self._store.write(json.dumps(said).encode(), self._file)

    def _beat(self) -> None:
        while not self._end.wait(BEAT):
            try:
                with self._writing:
                    if self._end.is_set():
                        return
                    self.check()
                    self._write()
            except HeldError:  # the next upload will say so
                return
            except CheckpointError:  # if that lasts the next upload will fail, too
                continue

    def _latest_here(self) -> str | None:
        try:
            return (self._run / TOKEN).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    def _held(self, said: dict[str, Any]) -> HeldError:
        host = said.get("host", "another machine")
        return HeldError(f"{self._store.at(self._run.name)} is being worked on by a process on {host}")


def _said(content: bytes) -> dict[str, Any]:
    """What it says; nothing of what cannot be read."""
    try:
        said = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
