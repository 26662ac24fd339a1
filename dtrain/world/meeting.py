"""How the ranks of a world find each other, and what is said when they do not.

They meet at a key-value store of torch's, which rank 0 opens or torchelastic's agent holds already.
"""

import errno
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta

from torch.distributed import DistError, PrefixStore, TCPStore  # type: ignore[attr-defined]  # torch makes these names at import

from dtrain.errors import LaunchError
from dtrain.world.world import World

QUICKEST, SLOWEST = 0.02, 0.5  # seconds between two looks at the store
WRONG = "wrong"  # the key of what that is


@dataclass(frozen=True)
class Peer:
    """One process of the world, as the others know it."""

    rank: int
    local_rank: int
    host: str
    address: str  # of its end towards rank 0
    pid: int
    port: int  # where rank 0 listens for the watch; 0 for the others

    @property
    def machine(self) -> int:
        """Which machine it is on: the first rank there."""
        return self.rank - self.local_rank


@dataclass(frozen=True)
class Meeting:
    """A store with a key space for this start of the ranks, and who they are, by rank."""

    store: PrefixStore
    secret: str  # which nobody else knows who has not met
    peers: Sequence[Peer]


def meet(world: World, seconds: float, port: int) -> Meeting:
    """Meet the other ranks within some seconds; `port` is where this rank listens, if it does.

    A store of torchelastic's agent holds what dead ranks left there, and nothing in the environment tells one
    start from the next: agents of several machines count restarts differently, and do not count those after
    which the world has another size. So rank 0 thinks of a new key space and tells it to each process that
    asks, by the process's own number.

    Raises LaunchError, naming host, port and ranks, where rank 0 cannot open its store or is not reached,
    where a rank does not come, comes twice, or believes in another number of ranks.
    """
    until = time.monotonic() + seconds
    is_master = world.rank == 0 and not world.store_exists
    address = world.address if world.rank == 0 else _reach(world, until)
    store = PrefixStore("dtrain", _open_store(world, is_master, seconds))
    own = Peer(world.rank, world.local_rank, socket.gethostname(), address, os.getpid(), port)
    try:
        space = secrets.token_hex(8) if world.rank == 0 else _ask(store, world, own, until)
        here = PrefixStore(space, store)
        _enrol(here, own)
        return Meeting(here, space, _everybody(here, world, until, Reception(store, here, space, world)))
    except DistError as error:
        raise _own(
            f"rank 0 left the meeting at {_place(world)} before all had come ({_hint(error)})"
        ) from None


def _ask(store: PrefixStore, world: World, own: Peer, until: float) -> str:
    """Ask rank 0 for the key space of this start."""
    number = secrets.token_hex(8)
    asked = json.dumps({"number": number, "size": world.size, "host": own.host})
    for _ in pauses(until):
        store.set(f"asks/{world.rank}", asked)  # again, as another that says it has this rank may ask at once
        if store.check([f"answers/{number}"]):
            return str(store.get(f"answers/{number}").decode())
    raise _own(
        f"rank 0 did not come to {_place(world)} in time, or another run has that port; if so, set "
        "MASTER_PORT (--main_process_port of `accelerate launch`) to a free one"
    )


class Reception:
    """Rank 0's part: it answers those who ask."""

    def __init__(self, store: PrefixStore, here: PrefixStore, space: str, world: World):
        self.store, self.here, self.space, self.world = store, here, space, world
        self.answered: set[str] = set()

    def answer(self) -> None:
        """Answer whoever has asked since the last time; a rank with another number of ranks is noted."""
        for rank in range(1, self.world.size):
            if not self.store.check([f"asks/{rank}"]):
                continue
            asked = json.loads(self.store.get(f"asks/{rank}"))
            if asked["number"] in self.answered:
                continue
            self.answered.add(asked["number"])
            if asked["size"] != self.world.size:
                what = (
                    f"rank {rank} (host {asked['host']}) was started in a world of {asked['size']} "
                    f"processes, and rank 0 in one of {self.world.size}; start all with the same number"
                )
                self.here.set(WRONG, what)
            self.store.set(f"answers/{asked['number']}", self.space)


def _enrol(here: PrefixStore, own: Peer) -> None:
    first = Peer(**json.loads(here.compare_set(f"rank-{own.rank}", "", json.dumps(asdict(own)))))
    if first != own:
        here.set(
            WRONG,
            f"two processes say that they are rank {own.rank}: {first.pid} on host {first.host} and "
            f"{own.pid} on host {own.host}; give each a RANK of its own",
        )


def _everybody(here: PrefixStore, world: World, until: float, reception: Reception) -> list[Peer]:
    """Wait for all ranks; on rank 0, receive them."""
    keys = [f"rank-{rank}" for rank in range(world.size)]
    began = time.monotonic()
    for _ in pauses(until):
        if world.rank == 0:
            reception.answer()
        if here.check([WRONG]):
            break
        if here.check(keys):
            return [Peer(**json.loads(text)) for text in here.multi_get(keys)]
    missing = [str(rank) for rank, key in enumerate(keys) if not here.check([key])]
    absent = (
        f"rank{'s' * (len(missing) > 1)} {', '.join(missing)} of {world.size} did not come to "
        f"{_place(world)} within {time.monotonic() - began:.0f} s; look at what their launcher says, "
        "or they themselves; where they only start late, a longer --hang-timeout lets all wait longer"
    )
    wrong = here.compare_set(WRONG, "", absent).decode()
    if world.rank == 0:
        time.sleep(2 * SLOWEST)  # until the others have read it, as the store may be ours
    raise LaunchError(wrong)


def pauses(until: float) -> Iterator[None]:
    """Turns of looking, ever more seldom, until a moment: the store's own wait warns each time it ends."""
    pause = QUICKEST
    while time.monotonic() < until:
        yield
        time.sleep(pause)
        pause = min(1.5 * pause, SLOWEST)


def _reach(world: World, until: float) -> str:
    """Wait until somebody listens where rank 0 should; return the address of our end."""
    problem: OSError | None = None
    began = time.monotonic()
    for _ in pauses(until):
        try:
            left = max(until - time.monotonic(), SLOWEST)
            with socket.create_connection((world.address, world.port), timeout=left) as connection:
                return str(connection.getsockname()[0])
        except OSError as error:
            problem = error
    what = "that name is not known" if isinstance(problem, socket.gaierror) else f"{_hint(problem)}"
    raise _own(
        f"rank 0 cannot be reached at {_place(world)} ({what}; tried for {time.monotonic() - began:.0f} s); "
        "MASTER_ADDR and MASTER_PORT (--main_process_ip and --main_process_port of `accelerate launch`) "
        "must name its host and a port that no firewall closes, and it must be started"
    )


def _open_store(world: World, is_master: bool, seconds: float) -> TCPStore:
    """Open the store, or connect to it.

    In a thread: a program of another kind may take the connection, and torch 2.13 then waits without end.
    """
    found: list[TCPStore | Exception] = []

    def connect() -> None:
        try:
            store = TCPStore(
                world.address,
                world.port,
                world.size,
                is_master=is_master,
                timeout=timedelta(seconds=seconds),
                wait_for_workers=False,  # it would wait without knowing for whom
                multi_tenant=True,
            )
            found.append(store)
        except (DistError, RuntimeError) as error:
            found.append(error)

    connecting = threading.Thread(target=connect, name="dtrain store", daemon=True)
    connecting.start()
    connecting.join(seconds)
    (result,) = found or [TimeoutError("it does not answer")]
    if isinstance(result, Exception):
        raise _not_opened(world, is_master, result) from None
    return result


def _not_opened(world: World, is_master: bool, error: Exception) -> LaunchError:
    to_do = "set MASTER_PORT (--main_process_port of `accelerate launch`) to a free one"
    if not is_master:
        said = f"what listens at {_place(world)} is no rank 0 of dtrain ({_hint(error)})"
        return _own(f"{said}; if another program has that port, {to_do}")
    if "EADDRINUSE" in str(error) or os.strerror(errno.EADDRINUSE).lower() in str(error).lower():
        said = f"port {world.port} of {world.address} is in use by another program, perhaps by another run"
        return _own(f"{said}; {to_do}")
    return _own(f"rank 0 cannot listen at {_place(world)}: {_hint(error)}")


def _own(message: str) -> LaunchError:
    """What this rank alone has to say."""
    error = LaunchError(message)
    error.is_shared = False
    return error


def _place(world: World) -> str:
    return f"{world.address}:{world.port}"


def _hint(error: Exception | None) -> str:
    """The first line of what torch or the system said."""
    return (str(error).splitlines() or [""])[0].strip()
