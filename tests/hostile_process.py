"""Carries out dtrain commands under an audit: `python hostile_process.py CASES` prints JSON, a line for each.

CASES is a file of JSON: modules to import first, and a list of arguments for each command. What is said of each command: its exit status, its words,
the seconds and the memory that it took, and all that it did which a recipe may not make it do.
"""

import contextlib
import importlib
import io
import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

FORBIDDEN = (
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.Popen",
    "pty.spawn", "socket.", "pickle.", "urllib.", "ftplib.", "http.", "shutil.", "os.remove", "os.rename",
    "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.mkdir", "webbrowser.",
    "cpython.run_", "sqlite3.", "winreg.", "builtins.input",
)  # fmt: skip
READS = ("open", "os.listdir", "os.scandir")
INSTALLED = tuple(
    os.path.realpath(path) + os.sep
    for path in {sys.prefix, sys.base_prefix, *sys.path[1:]}
    if path and os.path.isdir(path)
)


class Audit:
    """Notes what happens while it is on."""

    def __init__(self) -> None:
        self.is_on = False
        self.allowed: tuple[str, ...] = ()
        self.seen: list[str] = []
        self.imported: set[str] = set()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on:
            return
        if event == "import":
            self.imported.add(str(arguments[0]).partition(".")[0])
        elif event in READS:
            self._look(event, arguments)
        elif event.startswith(FORBIDDEN):
            self.seen.append(f"{event} {arguments!r}"[:200])

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        path = arguments[0]
        if isinstance(path, int) or path is None:
            return
        writes = event == "open" and bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        real = os.path.realpath(os.fsdecode(path))
        is_inside = (real + os.sep).startswith(self.allowed)
        if writes or not (is_inside or (real + os.sep).startswith(INSTALLED)):
            self.seen.append(f"{event} {real}{' to write' if writes else ''}"[:200])


def memory() -> int:
    """The most bytes that this process had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def loaded(path: str) -> int:
    """Load the models of a checkpoint, and end as a command would."""
    from dtrain.checkpoint.models import load_models
    from dtrain.errors import DtrainError

    try:
        load_models(path)
    except DtrainError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def main(modules: list[str], cases: list[list[str]]) -> None:
    from dtrain.cli.app import carry_out

    for module in modules:  # torch takes its seconds before anything is measured
        importlib.import_module(module)
    audit = Audit()
    sys.addaudithook(audit)
    for arguments in cases:
        path = os.path.abspath(arguments[-1])
        folder = (path if os.path.isdir(path) else os.path.dirname(path)) + os.sep
        config = os.path.join(os.environ["XDG_CONFIG_HOME"], "dtrain", "config.toml") + os.sep
        audit.allowed, audit.seen, audit.imported = (folder, config), [], set()
        before, begun, words = memory(), time.process_time(), io.StringIO()
        audit.is_on = True
        with contextlib.redirect_stderr(words), contextlib.redirect_stdout(words):
            code = loaded(arguments[-1]) if arguments[0] == "load_models" else carry_out(arguments)
        audit.is_on = False
        print(
            json.dumps(
                {
                    "code": code,
                    "words": words.getvalue()[:20_000],
                    "seconds": time.process_time() - begun,
                    "memory": memory() - before,
                    "seen": audit.seen[:5],
                    "imported": sorted(audit.imported),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main(*json.loads(Path(sys.argv[1]).read_text()))
