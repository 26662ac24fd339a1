"""The lookout: each rank's thread that tells the others where it is, and ends the process when one fails.

Without it a rank that dies or hangs leaves the others waiting in a collective until that times out, half an
hour later, and they say nothing of who it was. The ranks tell rank 0 by connections of their own, ten times
in the patience that they have with each other; rank 0 (`hub`) judges. The main thread sends nothing, but
before what may take long.
"""

import faulthandler
import multiprocessing
import os
import re
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # it has no types

from dtrain.errors import DtrainError, LaunchError, RankError
from dtrain.world import verdict
from dtrain.world.hub import Hub, states_of
from dtrain.world.meeting import Meeting
from dtrain.world.position import Position
from dtrain.world.verdict import DEFECT, Failure, Member, Shown, Verdict
from dtrain.world.wire import Message, Wire

MISTAKE, INTERRUPTED = 2, 130  # exit status
UNWINDING = 20.0  # seconds that a process has to end in good order when all is said
SHOWING = 0.5  # seconds that a process has to show its stacks
LATER = 0.5  # seconds by which others leave the first word to the rank that failed
# What gloo, NCCL and the store say where the other side has gone.
BROKEN = re.compile(r"gloo|NCCL|onnection (closed|reset|refused)|[Bb]roken pipe|Timed? ?out|Socket", re.ASCII)


class Lookout:
    """Of a world of one it does nothing. Its methods are the main thread's; `hear` is its own thread's."""

    def __init__(self, position: Position, patience: float):
        self.position, self.patience = position, patience
        self._post: Callable[[Message], None] = lambda message: None
        self._thread: threading.Thread | None = None
        self._answered = threading.Event()
        self._verdict: Verdict | None = None
        self._fails = self._is_over = self._has_said = False
        self._saying = threading.Lock()

    def open(self, meeting: Meeting, rank: int, listener: socket.socket | None, address: str) -> None:
        """Begin to look out, after the ranks have met; rank 0 has the listener, at `address`."""
        self._peers, self._me = meeting.peers, meeting.peers[rank]
        self._main = threading.get_ident()
        self._killed_before = killed_for_memory()
        if listener is not None:
            hub = Hub(listener, meeting.secret, meeting.peers, self.position, self.patience, self.hear)
            self._post, work = hub.post, hub.serve
            self.position.announce = hub.announce
        else:
            wire = Wire(connect(address, meeting.peers[0].port, 2 * self.patience), self.patience)
            wire.send({"secret": meeting.secret, "rank": rank})
            self._post, work = wire.send, lambda: self._follow(wire)
            self.position.announce = lambda: wire.send({"seen": self.position.seen()})
        if not faulthandler.is_enabled():
            with suppress(ValueError, OSError):  # there may be no stderr
                faulthandler.enable()  # a crash in foreign code then shows where it was called
        self._thread = threading.Thread(target=work, name="dtrain lookout", daemon=True)
        self._thread.start()

    def failed(self, error: BaseException) -> None:
        """Tell all ranks of an exception, which is the caller's to raise again if all ranks have the like.

        Raises RankError where it is one rank's, when that rank's report has been printed.
        """
        if self._thread is None or self._is_over or isinstance(error, RankError):
            return
        if isinstance(
            error, GeneratorExit
        ):  # the run was let go of unclosed, perhaps at the end of all threads
            self._is_over = True
            self._post({"left": True})
            return
        self._fails = True
        self._post({"seen": self.position.seen(), "failed": asdict(failure_of(error))})
        self._answered.wait(2 * UNWINDING)
        self._is_over = True
        if self._answered.is_set() and self._verdict is None:
            return
        found = self._verdict or verdict.of_failed(*2 * ([self._member(failure_of(error))],))
        self._say(found)
        raise RankError(found.cause, found.status) from error

    def leave(self) -> None:
        """Tell the others that all went well."""
        if self._thread is None or self._is_over:
            return
        self._is_over = True
        self._post({"left": True})
        self._thread.join(UNWINDING)

    def hear(self, message: Message) -> None:
        """Act on what rank 0 says."""
        if "show" in message:
            self._post({"seen": self.position.seen(), "shown": asdict(self._show())})
        elif "verdict" in message:
            self._obey(Verdict(**message["verdict"]))
        elif "alike" in message:
            self._answered.set()

    def _follow(self, wire: Wire) -> None:
        """The thread's work on ranks other than 0: tell where this one is, and hear what is said."""
        interval = min(self.patience / 10, 3.0)
        first = Member(self._peers[0], time.monotonic(), Position().seen())
        beat = woken = time.monotonic()
        while not self._answered.is_set():
            if select.select([wire], [], [], interval / 2)[0]:
                for message in wire.receive():
                    first.heard, first.seen = time.monotonic(), message.get("alive", first.seen)
                    self.hear(message)
            now = time.monotonic()
            if now - woken > self.patience / 2:  # this process was itself stopped: it knows nothing of rank 0
                first.heard = now
            woken = now
            if now - beat > interval:
                beat = now
                wire.send({"seen": self.position.seen()})
            if not wire.is_open:
                if not self._is_over:
                    first.is_lost = True
                    self._obey(verdict.of_lost([first, self._member()], [first]))
                return
            if now - first.heard > first.may_be_mute(self.patience):
                near = self._member()
                said = verdict.of_silent([first, near], [first], states_of([first], near), now - first.heard)
                self._obey(said)
        wire.close()

    def _member(self, failure: Failure | None = None) -> Member:
        """This rank as the others see it."""
        return Member(self._me, time.monotonic(), self.position.seen(), failure, shown=self._show())

    def _show(self) -> Shown:
        frame = sys._current_frames().get(self._main)
        stack = [] if frame is None else traceback.extract_stack(frame)
        waits = bool(stack) and is_waiting(stack[-1])
        own = [entry for entry in stack if not re.search(r"[/\\]click[/\\]|<frozen ", entry.filename)]
        text = "Stack of its main thread (most recent call last):\n" + "".join(traceback.format_list(own))
        return Shown(text, waits, killed_for_memory() - self._killed_before)

    def _obey(self, found: Verdict) -> None:
        """End as the verdict says: by the main thread, if it has an exception of its own, else here."""
        self._verdict = found
        self._answered.set()
        if not self._fails:
            self._say(found)
        accused = [self._peers[rank] for rank in found.ranks]
        if not found.is_alive:  # they may be stopped, and would outlive us
            put_down(p.pid for p in accused if p.machine == self._me.machine and p.rank != self._me.rank)
        elif not self._fails and self._me in accused:  # it hangs, perhaps for a worker
            put_down(child.pid for child in multiprocessing.active_children())
        if self._fails:
            time.sleep(UNWINDING)
        end(found.status)

    def _say(self, found: Verdict) -> None:
        """Print the report, once on each machine, and by the rank itself if it can; others a line."""
        with self._saying:  # who comes second waits until it is said
            if not self._has_said:
                self._has_said = True
                self._speak(found)

    def _speak(self, found: Verdict) -> None:
        here = [peer.rank for peer in self._peers if peer.machine == self._me.machine]
        accused = [rank for rank in found.ranks if rank in here]
        others = [rank for rank in here if rank not in found.ranks]
        speaker = accused[0] if accused and found.is_alive else min(others, default=self._me.rank)
        if self._me.rank == speaker:
            said = found.report()
        else:
            time.sleep(LATER)
            said = f"dtrain: rank {self._me.rank} ends with rank {found.ranks[0]}, whose report says why\n"
        with suppress(OSError):
            os.write(2, said.encode(errors="replace"))


def connect(address: str, port: int, seconds: float) -> socket.socket:
    """Connect to rank 0. Raises LaunchError where that cannot be."""
    try:
        return socket.create_connection((address, port), timeout=seconds)
    except OSError as error:
        said = LaunchError(
            f"rank 0 cannot be reached at {address}:{port} ({error}), though its store can: ranks must reach "
            "each other at any port"
        )
        said.is_shared = False
        raise said from None


def failure_of(error: BaseException) -> Failure:
    """An exception as it is told."""
    said = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    if isinstance(error, DtrainError):
        message = str(error)
        rest = message if "\n" in message else ""
        return Failure(message.splitlines()[0], rest, MISTAKE, error.is_shared, False)
    if isinstance(error, KeyboardInterrupt):
        return Failure("it was interrupted", "", INTERRUPTED, True, False)
    text = "".join(traceback.format_exception(error))
    if is_out_of_memory(error):
        said = f"it ran out of memory ({said}); smaller micro-batches need less"
    is_broken = isinstance(error, RuntimeError) and BROKEN.search(str(error)) is not None
    return Failure(said, text, DEFECT, False, is_broken and not is_out_of_memory(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a host's or a device's memory did not suffice."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and ("out of memory" in str(error) or "can't allocate memory" in str(error))
    )


def is_waiting(innermost: traceback.FrameSummary) -> bool:
    """Whether the innermost line of a stack is one that waits for other ranks, or for a device."""
    path = Path(innermost.filename).as_posix()
    waits_in = ("torch/distributed/", "deepspeed/comm/", "dtrain/engines/", "dtrain/world/")
    return innermost.name == "_engine_run_backward" or any(part in path for part in waits_in)


def killed_for_memory() -> int:
    """How many processes the kernel of this machine, or of this container, has killed for lack of memory."""
    counts = [0]
    for file in ("/sys/fs/cgroup/memory.events", "/proc/vmstat"):
        with suppress(OSError):
            counts += [int(n) for n in re.findall(r"^oom_kill (\d+)$", Path(file).read_text(), re.MULTILINE)]
    return sum(counts)


def put_down(processes: Iterable[int | None]) -> None:
    """End processes that do not go on; those that are not stopped show their Python stacks on stderr."""
    found = [pid for pid in processes if pid is not None]
    for number in (signal.SIGABRT, signal.SIGKILL):  # faulthandler answers though foreign code has the lock
        for pid in found:
            with suppress(OSError):
                os.kill(pid, number)
        if found:
            time.sleep(SHOWING)


def end(status: int) -> None:
    """End this process and its children now, whatever its other threads are about."""
    for child in multiprocessing.active_children():
        child.kill()
    with suppress(psutil.Error, OSError):
        for other in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                other.terminate()
    flushing = threading.Thread(target=_flush, daemon=True)  # another thread may hold their locks for ever
    flushing.start()
    flushing.join(1)
    os._exit(status)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
