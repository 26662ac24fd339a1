"""Small JSON messages, a line each, between two processes: nothing that is read can be run."""

import json
import socket
import threading
from typing import Any

Message = dict[str, Any]
SECONDS = 2.0  # for a message to leave; the other side's buffer holds hundreds of them


class Wire:
    """One end of a connection. Several threads may send; one reads, when there is something to read."""

    def __init__(self, connection: socket.socket, patience: float):
        """A connection that ends where the other side's machine has not answered for `patience` seconds."""
        self.connection = connection
        self.is_open = True
        self._sending = threading.Lock()
        self._unread = b""
        connection.settimeout(SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        watch(connection, patience)

    def fileno(self) -> int:
        """What a selector goes by."""
        return self.connection.fileno()

    def send(self, message: Message) -> None:
        """Send a message; where nobody is there any more, nothing happens: whoever reads finds out."""
        line = json.dumps(message).encode() + b"\n"
        with self._sending:
            try:
                self.connection.sendall(line)
            except OSError:
                return

    def receive(self) -> list[Message]:
        """The messages that have come whole; `is_open` is False when the other side has closed."""
        try:
            read = self.connection.recv(1 << 20)
        except OSError as error:
            if isinstance(error, TimeoutError) and error.errno is None:  # ours, while nothing has come
                return []
            read = b""
        if not read:
            self.is_open = False
        *lines, self._unread = (self._unread + read).split(b"\n")
        try:
            return [json.loads(line) for line in lines]
        except ValueError:  # no rank of ours
            self.is_open = False
            return []

    def close(self) -> None:
        """Close this end."""
        self.connection.close()


def watch(connection: socket.socket, patience: float) -> None:
    """Have the system end a connection to a machine that does not answer, as where a cable is cut.

    Systems answer each other whatever their processes do, so this finds what a process's silence does not
    tell while it is in foreign code.
    """
    sooner = max(int(patience / 6), 1)
    options = {"TCP_KEEPIDLE": sooner, "TCP_KEEPINTVL": sooner, "TCP_KEEPCNT": 5}
    options["TCP_USER_TIMEOUT"] = int(1000 * patience)  # of what was sent and not acknowledged
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options.items():
        if (option := getattr(socket, name, None)) is not None:  # not every system has each
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
