"""Which rank is to blame when a run cannot go on: judged from what every rank last said of itself.

Nothing here waits, sends or reads a clock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dtrain.world.meeting import Peer
from dtrain.world.position import LONG, described

DEFECT = 1  # exit status


@dataclass(frozen=True)
class Failure:
    """An exception of a rank, as it tells the others."""

    said: str  # its type and message in a line
    text: str  # what a user is shown below: the traceback, or all lines of a mistake's message
    status: int  # what the process will end with
    is_shared: bool  # whether all ranks should raise the same
    is_broken: bool  # whether it may be but the end of a connection to a rank that failed


@dataclass(frozen=True)
class Shown:
    """What a rank shows when it is asked: the Python stack of its main thread."""

    stack: str
    waits: bool  # whether it waits for others in a collective
    out_of_memory: int  # processes that its machine's kernel killed for lack of memory since the start


@dataclass
class Member:
    """What is known of a rank."""

    peer: Peer
    heard: float  # when it last gave a sign of life, in seconds of our clock
    seen: Mapping[str, Any]  # of its `Position`
    failure: Failure | None = None
    failed: float = 0.0  # when
    is_lost: bool = False  # its connection ended before it said that it leaves
    has_left: bool = False
    shown: Shown | None = None

    @property
    def is_there(self) -> bool:
        return not (self.is_lost or self.has_left)

    @property
    def still(self) -> float:
        """Seconds in which it did not move, when it was last heard of."""
        return float(self.seen["still"])

    def limit(self, patience: float) -> float:
        """Seconds that it may stand still while others wait for it."""
        return patience * LONG if self.seen["is_long"] else patience

    def may_be_mute(self, patience: float) -> float:
        """Seconds in which nothing need be heard of it."""
        return patience * LONG if self.seen["is_mute"] else patience


@dataclass(frozen=True)
class Verdict:
    """What is said on every rank, and what each ends with."""

    ranks: Sequence[int]  # to blame
    cause: str  # who, what and where, in a line
    text: str  # a traceback, or more lines of a message
    status: int
    others: Sequence[str] = field(default_factory=tuple)  # where each rank was, a line each
    is_alive: bool = True  # whether those to blame can still say so themselves

    def report(self) -> str:
        """All of it, as it is printed once on each machine."""
        lines = [f"dtrain: {self.cause}", *([self.text.rstrip()] if self.text else [])]
        if self.others:
            lines += ["where the ranks were:", *(f"  {line}" for line in self.others)]
        return "\n".join(lines) + "\n"

    def as_json(self) -> dict[str, Any]:
        """The same as a message takes it."""
        return asdict(self)


def failed(members: Sequence[Member]) -> list[Member]:
    """Those with an exception of their own: neither all ranks' nor the echo of another's."""
    own = [m for m in members if m.failure and not (m.failure.is_shared or m.failure.is_broken)]
    return sorted(own, key=lambda m: m.failed)


def lost(members: Sequence[Member]) -> list[Member]:
    """Those that ended without a word."""
    return [m for m in members if m.is_lost and m.failure is None]


def silent(members: Sequence[Member], now: float, patience: float) -> list[Member]:
    """Those that gave no sign of life for longer than they may."""
    return [m for m in members if m.is_there and now - m.heard > m.may_be_mute(patience)]


def behind(members: Sequence[Member], patience: float) -> list[Member]:
    """Those that others may be waiting for: the ranks with the least progress, if they stand still for long.

    They may be all ranks; then only their stacks can tell who waits for whom, if anybody does.
    """
    there = [m for m in members if m.is_there]
    least = min((m.seen["moves"] for m in there), default=0)
    slow = [m for m in there if m.seen["moves"] == least]
    ahead = [m for m in there if m.seen["moves"] > least]
    if not all(m.still > m.limit(patience) for m in slow):
        return []
    return slow if not ahead or any(m.still > patience for m in ahead) else []


def hung(members: Sequence[Member], slow: Sequence[Member]) -> list[Member]:
    """Of those that are `behind`, the ones that do not themselves wait; none where it cannot be told."""
    own = [m for m in slow if m.shown is not None and not m.shown.waits]
    are_all = len(slow) == sum(m.is_there for m in members)
    if are_all:  # all do the same, and none waits: this is no hang
        return own if len(own) < len(slow) else []
    return own or list(slow)


def waited_for(members: Sequence[Member], patience: float) -> list[Member]:
    """Those that take their time with something long, while the others wait."""
    there = [m for m in members if m.is_there]
    least = min((m.seen["moves"] for m in there), default=0)
    if not any(m.seen["moves"] > least and m.still > patience for m in there):
        return []
    return [m for m in there if m.seen["moves"] == least and m.still > patience and m.seen["is_long"]]


def of_failed(members: Sequence[Member], found: Sequence[Member]) -> Verdict:
    """The verdict on ranks with exceptions: the first one's is shown."""
    first, failure = found[0], found[0].failure
    assert failure is not None
    also = sum(m.failure is not None and m.failure.said == failure.said for m in found[1:])
    so_too = f"; so did {also} other rank{'s' * (also > 1)}" if also else ""
    cause = f"{name(first, members)} failed in {place(first)}: {failure.said}{so_too}"
    ranks = [m.peer.rank for m in found]
    return Verdict(ranks, cause, failure.text, failure.status, table(members))


def of_lost(members: Sequence[Member], found: Sequence[Member]) -> Verdict:
    """The verdict on ranks that ended without a word."""
    killed = max((m.shown.out_of_memory for m in members if m.shown and _is_near(m, found)), default=0)
    why = (
        "the kernel killed a process there for lack of memory: out of memory; smaller micro-batches need less"
        if killed
        else "it was killed (SIGKILL, SIGTERM), or crashed in foreign code, or its machine or the network to "
        "it went down"
    )
    cause = f"{names(found, members)} ended without a word in {place(found[0])}; {why}"
    return Verdict([m.peer.rank for m in found], cause, "", DEFECT, table(members), is_alive=False)


def of_silent(members: Sequence[Member], found: Sequence[Member], states: str, seconds: float) -> Verdict:
    """The verdict on ranks of which nothing is heard; `states` is what their processes' states tell."""
    why = states or "it is stopped, its machine hangs, or the network between us is cut"
    cause = (
        f"{names(found, members)} gave no sign of life for {seconds:.0f} s, last in {place(found[0])}; {why}"
    )
    others = table(members, found, seconds)
    return Verdict([m.peer.rank for m in found], cause, "", DEFECT, others, is_alive=False)


def of_hung(members: Sequence[Member], found: Sequence[Member]) -> Verdict:
    """The verdict on ranks that do not go on, with the stack of the first."""
    seconds = round(found[0].still)
    cause = f"{names(found, members)} hangs in {place(found[0])}: no move for {seconds} s, while others wait"
    stack = found[0].shown.stack if found[0].shown else ""
    return Verdict([m.peer.rank for m in found], cause, stack, DEFECT, table(members))


def name(member: Member, members: Sequence[Member]) -> str:
    """A rank with its host, where there are several, and its process."""
    peer = member.peer
    hosts = {m.peer.machine: m.peer.host for m in members}
    where = f"host {peer.host}, " if len(hosts) > 1 else ""
    if len(hosts) > len(set(hosts.values())):
        where = f"host {peer.host} at {peer.address}, "
    return f"rank {peer.rank} ({where}process {peer.pid})"


def names(found: Sequence[Member], members: Sequence[Member]) -> str:
    """Several of them; of a crowd the first few."""
    shown = [name(m, members) for m in found[:4]]
    return ", ".join(shown) + (f" and {len(found) - 4} more ranks" if len(found) > 4 else "")


def place(member: Member) -> str:
    """Where a rank was last."""
    return described(member.seen)


def table(members: Sequence[Member], silent: Sequence[Member] = (), seconds: float = 0.0) -> list[str]:
    """A line for each rank: where it was, and whether it waited, was gone, or silent for so long."""
    lines = []
    for m in members:
        if m in silent:  # it may have gone on since
            lines.append(f"rank {m.peer.rank}: {place(m)}, as it said {seconds:.0f} s ago")
            continue
        what = " (waiting for others)" if m.shown is not None and m.shown.waits else ""
        if not m.is_there:
            what = " (then gone)"
        lines.append(f"rank {m.peer.rank}: {place(m)}, for {m.still:.1f} s{what}")
    return lines


def _is_near(member: Member, found: Sequence[Member]) -> bool:
    return any(member.peer.machine == m.peer.machine for m in found)
