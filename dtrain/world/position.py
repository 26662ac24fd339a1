"""Where a rank is in its run: what the others are told of it when something goes wrong."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

HANG_TIMEOUT = (
    30.0  # seconds of patience that the ranks have with one that does not move, unless told otherwise
)
LONG = 20  # times the patience that a rank has for what may take long


class Position:
    """Written by the main thread, a few attributes at a time, and read by the thread of the lookout.

    All ranks call the same methods in the same order, so that the one with the fewest `moves` is behind.
    """

    def __init__(self) -> None:
        self.step = self.update = -1  # counted from 0; -1 before the first
        self.phase = ""
        self.models: Sequence[str] = ()
        self.doing = "starting"
        self.is_long = True  # whether this may take long on one rank while the others wait
        self.is_mute = True  # whether this process may meanwhile give no sign of life
        self.moves = 0
        self.since = time.monotonic()
        self.announce: Callable[[], None] = lambda: None  # tells the others at once

    def load(self, step: int, update: int, phase: str, models: Sequence[str], *, is_first: bool) -> None:
        """Begin an update, with its data; the first of its kind may take long."""
        self.step, self.update, self.phase, self.models = step, update, phase, models
        self.train("waiting for its data", is_first=is_first)

    def train(self, doing: str, *, is_first: bool) -> None:
        """Do a part of an update; the first of its kind, at which things are compiled, may take long."""
        (self.long if is_first else self.at)(doing)

    def at(self, doing: str, *, is_long: bool = False) -> None:
        """Do something that takes about equally long on all ranks; `is_long` where it may not."""
        was_mute = self.is_mute
        self.doing, self.is_long, self.is_mute = doing, is_long, False
        self.since = time.monotonic()
        self.moves += 1
        if was_mute:
            self.announce()

    def long(self, doing: str) -> None:
        """Do what may take long on one rank alone; the others hear of it before it begins, and at its end.

        For it may keep this process's other threads from running, as foreign code does with large files.
        """
        self.doing, self.is_long, self.is_mute = doing, True, True
        self.since = time.monotonic()
        self.moves += 1
        self.announce()

    def seen(self) -> dict[str, Any]:
        """All of it as JSON takes it; `still` is for how many seconds it has not moved."""
        return {
            "step": self.step,
            "update": self.update,
            "phase": self.phase,
            "models": list(self.models),
            "doing": self.doing,
            "is_long": self.is_long,
            "is_mute": self.is_mute,
            "moves": self.moves,
            "still": time.monotonic() - self.since,
        }


def described(seen: Mapping[str, Any]) -> str:
    """Step, phase, models and what is being done there, in words."""
    if seen["update"] < 0:
        return str(seen["doing"])
    models = ", ".join(seen["models"])
    place = f"step {seen['step'] + 1}, phase {seen['phase']} ({models}), update {seen['update']}"
    return f"{place}, {seen['doing']}"
