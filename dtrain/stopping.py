"""What asks a run to end: it ends after a step that all ranks agree on, and is saved there.

A scheduler that wants its machine back, a job near its time limit and a person at a terminal all say so by a
signal, to one rank, to some or to all. Where nobody would, rank 0's clock does.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import Thread
from typing import Any

from dtrain.events import Asked

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
TWICE = 1.0  # seconds; what comes sooner is the same wish over another way, as from a launcher and its group
SECONDS = 1.0  # between two looks at what the other ranks were asked
MOST = 100  # steps between two looks, however short steps are: one that is slow may follow


class Signals:
    """The first signal that asked for the end. A `with` resource, for the main thread alone.

    A person who presses Ctrl-C again does not want to wait: a second signal then ends the process at once. A
    scheduler that says SIGTERM again has SIGKILL for that; until it comes the checkpoint may be whole. What
    was ignored before stays ignored, as SIGHUP under `nohup`.
    """

    def __init__(self, say: Callable[[str], None]):
        self.first: signal.Signals | None = None
        self._say, self._since = say, 0.0

    def __enter__(self) -> "Signals":
        caught = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
        # A handler in Python waits until the main thread is back from a collective, which may be never; what
        # is written into this pipe a thread reads at once.
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._pipe_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, _leave_to_the_thread) for number in caught}
        self._thread = Thread(target=self._listen, name="dtrain-signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._pipe_before)
        os.close(self._writing)  # the thread reads the end of it
        self._thread.join()
        os.close(self._reading)

    def _listen(self) -> None:
        while numbers := os.read(self._reading, 64):
            for number in numbers:
                if number in self._before:
                    self._take(signal.Signals(number))

    def _take(self, number: signal.Signals) -> None:
        if self.first is None:
            self.first, self._since = number, time.monotonic()
            more = "; once more ends at once" if number == signal.SIGINT else ""
            self._say(f"{number.name}: stops after this step and saves{more}")
        elif signal.SIGINT in (self.first, number) and time.monotonic() - self._since > TWICE:
            self._say(f"{number.name}: ended at once, without saving")
            with suppress(OSError, ValueError):  # closed by whoever started us
                sys.stdout.flush()
            os._exit(128 + number)  # as a shell says it of a process that a signal ended


def _leave_to_the_thread(number: int, frame: Any) -> None:
    """Python calls a handler in the main thread; all that is done here is to have one."""


class Agreement:
    """Whether to stop after this step, the same on all ranks; every rank asks after every step.

    One rank must not leave while another is in an update, which needs both. So they tell each other, once in
    about a second: three numbers a rank, between the processors. In between nothing is exchanged.
    """

    def __init__(self, signals: Signals, world: int, *, until: float):
        """`until` is when the time is up, by the monotonic clock; that of rank 0 counts."""
        self._signals, self._world, self._until = signals, world, until
        self._steps = self._left = 1  # of this look, and of them how many until the next
        self._since = time.monotonic()

    def __call__(self) -> Asked | None:
        """For what all ranks stop now; None if they go on."""
        if self._world == 1:
            return _asked([self._signals.first or 0], self._is_late)
        self._left -= 1
        if self._left:
            return None
        found, self._left = self._look()
        self._steps, self._since = self._left, time.monotonic()
        return found

    @property
    def _is_late(self) -> bool:
        return time.monotonic() >= self._until

    def _look(self) -> tuple[Asked | None, int]:
        """What asks for the end, and after how many steps to look again, as rank 0 measures them."""
        import torch
        from torch import distributed

        pace = self._steps / max(time.monotonic() - self._since, 1e-9)  # steps a second
        steps = min(max(int(pace * SECONDS), 1), MOST)
        own = torch.tensor([self._signals.first or 0, steps, self._is_late])
        said = [torch.empty_like(own) for _ in range(self._world)]
        distributed.all_gather(said, own)  # on the processor, by gloo: no device is waited for
        _, steps_of_first, is_late = said[0].tolist()
        return _asked([int(each[0]) for each in said], bool(is_late)), steps_of_first


def _asked(signals: Iterable[int], is_late: bool) -> Asked | None:
    """The first rank's signal, where there is one; else the time, if it is up."""
    first = next(filter(None, signals), None)
    if first is not None:
        return signal.Signals(first)
    return "time is up" if is_late else None


def nobody() -> None:
    """Who asks a run to stop where no signal and no clock does: for a run in a program of one's own."""
