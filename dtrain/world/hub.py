"""Rank 0's part of the lookout: it hears all ranks, finds out who is to blame, and tells everybody."""

import queue
import selectors
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import psutil  # type: ignore[import-untyped]  # it has no types

from dtrain.world import verdict
from dtrain.world.meeting import Peer
from dtrain.world.position import Position
from dtrain.world.verdict import Failure, Member, Shown, Verdict
from dtrain.world.wire import Message, Wire

GATHER = 0.3  # seconds that others have to say that they failed likewise
ECHO = 3.0  # seconds in which it turns out whose failure the end of a connection is
SHOW = 2.0  # seconds that ranks have to show where they are
PARTING = 10.0  # seconds that ranks have to say that they leave


def listen(is_one_machine: bool) -> socket.socket:
    """A socket for the other ranks, at a port that is free."""
    if is_one_machine:
        return socket.create_server(("127.0.0.1", 0))
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


class Hub:
    """Serves until all ranks have left, or a verdict was told; a thread's whole work.

    `hear` takes the messages for rank 0 itself.
    """

    def __init__(
        self,
        listener: socket.socket,
        secret: str,
        peers: Sequence[Peer],
        position: Position,
        patience: float,
        hear: Callable[[Message], None],
    ):
        self.listener, self.secret, self.position = listener, secret, position
        self.patience, self.hear = patience, hear
        self.interval = min(patience / 10, 3.0)
        self.began, start = time.monotonic(), Position().seen()
        self.members = [Member(peer, self.began, start) for peer in peers]
        self.wires: dict[int, Wire] = {}
        self.unknown: list[Wire] = []
        self.own: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.wake_up, self.woken = socket.socketpair()
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ)
        self.selector.register(self.woken, selectors.EVENT_READ)
        self.conclude: Callable[[], Verdict | None] | None = None  # when all have shown where they are
        self.asked = 0.0  # when they were asked
        self.not_before = 0.0  # when to look again for a hang that turned out to be none
        self.noted = ""  # what long thing of which rank was told of
        self.is_over = False

    def post(self, message: Message) -> None:
        """Take a message of rank 0 itself, from any thread."""
        self.own.put(message)
        with suppress(OSError):
            self.wake_up.send(b".")

    def serve(self) -> None:
        """Hear, judge and tell, until it is over."""
        beat = looked = time.monotonic()
        while not self.is_over:
            for key, _ in self.selector.select(timeout=0.05 if self.conclude else self.interval / 4):
                self._read(key.fileobj)
            while not self.own.empty():
                self._take(self.members[0], self.own.get())
            now = time.monotonic()
            if (
                now - looked > self.patience / 2
            ):  # this process was itself stopped, and knows nothing of others
                for member in self.members:
                    member.heard = now
            looked = now
            self.members[0].heard, self.members[0].seen = now, self.position.seen()
            if now - beat > self.interval:
                beat = now
                self._tell({"alive": self.members[0].seen})
            self._look(now)
        self._close()

    def announce(self) -> None:
        """Tell the others where rank 0 is, before it does what may keep this thread from running."""
        self._tell({"alive": self.position.seen()})

    def _read(self, source: Any) -> None:
        if source is self.listener:
            connection, _ = self.listener.accept()
            wire = Wire(connection, self.patience)
            self.unknown.append(wire)
            self.selector.register(wire, selectors.EVENT_READ)
        elif source is self.woken:
            self.woken.recv(4096)
        else:
            self._hear_from(source)

    def _hear_from(self, wire: Wire) -> None:
        messages = wire.receive()
        if wire in self.unknown and messages:
            hello = messages.pop(0)
            if hello.get("secret") != self.secret:
                wire.is_open = False
            else:
                self.unknown.remove(wire)
                self.wires[hello["rank"]] = wire
        rank = next((rank for rank, known in self.wires.items() if known is wire), None)
        if rank is not None:
            for message in messages:
                self._take(self.members[rank], message)
        if not wire.is_open:
            self.selector.unregister(wire)
            wire.close()
            if rank is not None:
                del self.wires[rank]
                self.members[rank].is_lost = not self.members[rank].has_left

    def _take(self, member: Member, message: Message) -> None:
        member.heard = time.monotonic()
        if "seen" in message:
            member.seen = message["seen"]
        if "failed" in message:
            member.failure, member.failed = Failure(**message["failed"]), member.heard
        if "shown" in message:
            member.shown = Shown(**message["shown"])
        if "left" in message:
            member.has_left = True

    def _tell(self, message: Message) -> None:
        for wire in list(self.wires.values()):
            wire.send(message)

    def _look(self, now: float) -> None:
        if now - self.began > self.patience:  # who has not connected by now ended between the two meetings
            for member in self.members[1:]:
                member.is_lost |= member.is_there and member.peer.rank not in self.wires
        if all(m.has_left for m in self.members):
            self.is_over = True
        elif self.conclude is None:
            self.conclude = self._suspect(now)
            if self.conclude is not None:
                self.asked = now
                for member in self.members:
                    member.shown = None
                self._tell({"show": True})
                self.hear({"show": True})
        elif now - self.asked > SHOW or all(m.shown for m in self.members if m.is_there):
            found, self.conclude = self.conclude(), None
            self.not_before = now + self.patience / 2
            if found is not None:
                self._tell_all({"verdict": found.as_json()})

    def _suspect(self, now: float) -> Callable[[], Verdict | None] | None:
        """What makes the verdict, when all ranks have shown where they are; None if all is well."""
        everybody, patience = self.members, self.patience
        failures = sorted((m for m in everybody if m.failure), key=lambda m: m.failed)
        if failures:
            there = [m for m in everybody if m.is_there]
            if all(m.failure and m.failure.is_shared for m in there):
                self._tell_all({"alike": True})
                return None
            all_said = all(m.failure for m in there)
            own = verdict.failed(everybody)
            if own and (all_said or now - own[0].failed > GATHER):
                return lambda: verdict.of_failed(everybody, verdict.failed(everybody))
        if gone := verdict.lost(everybody):
            return lambda: verdict.of_lost(everybody, gone)
        if failures:
            return (
                (lambda: verdict.of_failed(everybody, failures)) if now - failures[0].failed > ECHO else None
            )
        if quiet := verdict.silent(everybody, now, patience):
            seconds = now - quiet[0].heard
            return lambda: verdict.of_silent(everybody, quiet, states_of(quiet, everybody[0]), seconds)
        if now > self.not_before and (slow := verdict.behind(everybody, patience)):
            return lambda: self._of_hung(slow)
        self._note_long()
        return None

    def _of_hung(self, slow: Sequence[Member]) -> Verdict | None:
        found = verdict.hung(self.members, slow)
        return verdict.of_hung(self.members, found) if found else None

    def _note_long(self) -> None:
        """Say once of what takes long on some ranks alone how long the others will wait for it."""
        found = verdict.waited_for(self.members, self.patience)
        note = f"{found[0].peer.rank} {found[0].seen['moves']}" if found else ""
        if note and note != self.noted:
            limit = found[0].limit(self.patience)
            print(
                f"dtrain: all wait for {verdict.names(found, self.members)}, in {verdict.place(found[0])}; "
                f"that may take up to {limit:.0f} s",
                file=sys.stderr,
                flush=True,
            )
        self.noted = note or self.noted

    def _tell_all(self, message: Message) -> None:
        self._tell(message)
        self.is_over = True
        self.hear(message)

    def _close(self) -> None:
        self.selector.close()
        for end in (self.listener, self.wake_up, self.woken):
            end.close()
        for wire in (*self.unknown, *self.wires.values()):
            wire.close()


def states_of(found: Sequence[Member], near: Member | None) -> str:
    """What the system says of the first of these processes, if it is on the machine of `near`."""
    first = found[0].peer
    if near is None or near.peer.machine != first.machine:
        return ""
    try:
        state = psutil.Process(first.pid).status()
    except psutil.Error:
        return "its process is gone"
    if state == psutil.STATUS_STOPPED:
        return "its process is stopped (SIGSTOP): it was killed"
    return f"its process is {state}; perhaps foreign code holds Python's lock; it was killed"
