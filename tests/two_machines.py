"""Two machines on this one: network namespaces that share nothing but a cable, which can be pulled."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

NETWORK = "10.77.0"  # of the cable alone: each machine has its own addresses


@dataclass(frozen=True)
class Machines:
    """Machine 0 and machine 1, at `address(0)` and `address(1)`, each on its end of the cable."""

    names: tuple[str, str]  # of the namespaces

    def address(self, number: int) -> str:
        return f"{NETWORK}.{number + 1}"

    def interface(self, number: int) -> str:
        return f"cable{number}"

    def on(self, number: int, command: Sequence[str]) -> list[str]:
        """A command as it is started on a machine."""
        return ["ip", "netns", "exec", self.names[number], *command]

    def cut(self) -> None:
        """Pull the cable: what is sent is lost, and nobody is told."""
        _ip("-n", self.names[1], "link", "set", self.interface(1), "down")

    def mend(self) -> None:
        """Plug it in again."""
        _ip("-n", self.names[1], "link", "set", self.interface(1), "up")


@contextmanager
def machines() -> Iterator[Machines]:
    """Make both, with their cable, and take them away with whatever still runs there."""
    made = Machines((f"dtrain-{os.getpid()}-0", f"dtrain-{os.getpid()}-1"))
    try:
        for name in made.names:
            _ip("netns", "add", name)
        first, second = made.names
        ends = made.interface(0), made.interface(1)
        _ip("link", "add", ends[0], "netns", first, "type", "veth", "peer", "name", ends[1], "netns", second)
        for number, name in enumerate(made.names):
            _ip("-n", name, "addr", "add", f"{made.address(number)}/24", "dev", ends[number])
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", ends[number], "up")
        yield made
    finally:
        for name in made.names:
            with suppress(subprocess.CalledProcessError):
                for process in _ip("netns", "pids", name).split():
                    with suppress(ProcessLookupError):
                        os.kill(int(process), 9)
                _ip("netns", "delete", name)


def forbidden() -> str:
    """Why there can be none here; empty if there can."""
    if shutil.which("ip") is None:
        return "no ip here (Debian: apt-get install iproute2)"
    try:
        with machines():
            return ""
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not permitted here: {error.stderr.strip()}"


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
