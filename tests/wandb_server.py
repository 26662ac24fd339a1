"""As much of a W&B server as a run needs to be online: it says where the run is shown, and keeps nothing."""

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

OWNER = "someone"


@contextmanager
def wandb_server() -> Iterator[str]:
    """Serve on a free port of this machine; yield the address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        answer = {"data": _answer(json.loads(body))} if self.path == "/graphql" else {}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_PUT = do_POST

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    """The answer to a GraphQL query, by what it asks for."""
    query, variables = asked["query"], asked.get("variables") or {}
    if "upsertBucket" in query:
        project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": OWNER}}
        bucket = {
            "id": "b",
            "name": variables["name"],
            "displayName": "x",
            "config": "{}",
            "project": project,
        }
        return {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0}, "inserted": True}}
    if "createRunFiles" in query:
        files = [{"name": name, "uploadUrl": None} for name in variables["files"]]
        return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
    if "viewer" in query:
        teams: dict[str, Any] = {"edges": []}
        return {"viewer": {"id": "v", "entity": OWNER, "username": OWNER, "teams": teams, "flags": "{}"}}
    return {"model": None}
