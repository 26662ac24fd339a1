"""An S3 server over HTTP, moto's, and a network before it that can be watched, held up and cut."""

import http.client
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import dtrain.checkpoint.lease
import dtrain.format.urls
from dtrain.cli.app import main

BUCKET = "bucket"


class Network:
    """What every request passes. `calls` are those that did, as `PUT /bucket/key`."""

    def __init__(self, port: int):
        self.server_port = port
        self.calls: list[str] = []
        self._stops_at: Callable[[str], bool] | None = None
        self.stopped = Event()  # a request waits to be let through
        self._cut = Event()
        self._lock = Lock()
        network = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                with suppress(ConnectionError, TimeoutError):
                    super().handle_one_request()

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                del self.headers["Transfer-Encoding"]
                return body

            def _pass_on(self) -> None:
                body = self._body()
                if not network.lets_through(f"{self.command} {self.path.partition('?')[0]}"):
                    self.close_connection = True
                    return
                onward = http.client.HTTPConnection("127.0.0.1", network.server_port, timeout=60)
                with closing(onward):
                    onward.request(self.command, self.path, body, dict(self.headers))
                    answer = onward.getresponse()
                    content = answer.read()
                self.send_response_only(answer.status, answer.reason)
                for name, value in answer.getheaders():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
                self.send_header("Content-Length", str(length or 0))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def lets_through(self, call: str) -> bool:
        """Note a request, or keep it waiting until there is no network; False cuts its connection."""
        with self._lock:
            stops = self._stops_at is not None and self._stops_at(call)
            if not self._cut.is_set() and not stops:
                self.calls.append(call)
                return True
        if stops:
            self.stopped.set()
            self._cut.wait(600)
        return False

    def cut(self) -> None:
        """From now on no request is answered, not those either that wait."""
        self._cut.set()

    def mend(self) -> None:
        """Let all through again."""
        self.stop_at(None)
        self._cut.clear()

    def stop_at(self, wanted: Callable[[str], bool] | None) -> None:
        """Hold up every request of a kind from now on; `stopped` is set when there was one."""
        self.stopped.clear()
        self._stops_at = wanted


@contextmanager
def serve(log: Path) -> Iterator[tuple[Network, dict[str, str]]]:
    """A server with an empty bucket, the network before it, and the environment of who uses it."""
    started = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", "0"]
    with log.open("wb") as file, subprocess.Popen(started, stdout=file, stderr=file) as server:
        try:
            network = Network(_port_in(log))
            _ask(network.server_port, "PUT", f"/{BUCKET}")
            yield network, environment(network)
            network.server.shutdown()
            network.server.server_close()
        finally:
            server.kill()


def environment(network: Network) -> dict[str, str]:
    """What tells S3's clients where it is, and who they are."""
    return {
        "AWS_ENDPOINT_URL": network.url,
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }


def refuse_all(network: Network) -> None:
    """From now on the server knows nobody."""
    _ask(network.server_port, "POST", "/moto-api/reset-auth", b"0")


def empty(network: Network, *, bucket: bool = True) -> None:
    """Forget everything; then there is an empty bucket again, or none."""
    _ask(network.server_port, "POST", "/moto-api/reset")
    _ask(network.server_port, "POST", "/moto-api/reset-auth", b"1000000000")
    if bucket:
        _ask(network.server_port, "PUT", f"/{BUCKET}")
    network.mend()
    network.calls = []


@dataclass(frozen=True)
class Impatient:
    """dtrain's command line for a process that tries again at once, and watches others for seconds only."""

    environment: dict[str, str]

    def __call__(self, arguments: list[str]) -> int:
        from s3fs import S3FileSystem

        os.environ.update(self.environment)
        S3FileSystem.retries = 1
        dtrain.format.urls.PAUSES = (0.05, 0.05, 0.05)
        dtrain.checkpoint.lease.BEAT, dtrain.checkpoint.lease.PATIENCE = 0.3, 3.0
        dtrain.checkpoint.lease.SETTLE = 0.2
        return main(arguments)


def _ask(port: int, method: str, path: str, body: bytes = b"") -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body)
    answer = connection.getresponse()
    assert answer.status < 300, (path, answer.status, answer.read())
    connection.close()


def _port_in(log: Path) -> int:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        _, found, rest = log.read_text().partition("Running on http://127.0.0.1:")
        if found and "\n" in rest:
            return int(rest.split()[0])
        time.sleep(0.05)
    raise AssertionError(log.read_text())
