"""`record.jsonl` in a run's folder: what its state was, for `dtrain reproduce` to compare with.

A line is of a step: the `life` that began after it, with the environment; the hashes of all tensors of a
checkpoint that was `saved`; and, where `train.deterministic` asks for it, a digest of each tensor after the
step, sixteen hexadecimal digits each, in the order of the latest `names`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import xor
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Protocol

from dtrain.engines.base import Engine
from dtrain.engines.digests import numbers_of
from dtrain.errors import CheckpointError, DtrainError
from dtrain.format.checkpoints import glance_at
from dtrain.format.files import RECORD
from dtrain.format.lines import drop_later, whole_lines

DIGITS = 16  # of a digest


class Noted(NamedTuple):
    """The digests of a step, of one rank or of all."""

    step: int
    digests: dict[str, int]


class Listener(Protocol):
    """Who hears of what was noted."""

    def noted(self, noted: Noted) -> None:
        """The digests of a step, of all ranks together."""
        ...

    def saved(self, step: int, checkpoint: Path) -> None:
        """A checkpoint became whole."""
        ...


class Recorder:
    """Notes what a run's state is, and tells it on: on rank 0, of all ranks together."""

    def __init__(self, engine: Engine, listener: Listener | None, *, every_step: bool):
        self._engine, self._listener, self._every_step = engine, listener, every_step
        self._pending: list[tuple[int, Mapping[str, Any]]] = []

    def note(self, step: int) -> None:
        """The state is that after `step`. Nothing waits for a device."""
        if self._every_step:
            self._pending.append((step, self._engine.digests()))

    def flush(self) -> None:
        """Tell what was noted. Collective."""
        if not self._pending:
            return
        own = [numbers_of(digests.values()) for _, digests in self._pending]
        pending, self._pending = self._pending, []
        gathered = self._engine.gather(own)
        if self._listener is None:
            return
        for place, (step, digests) in enumerate(pending):
            rows = zip(*(rank[place] for rank in gathered), strict=True)
            values = (reduce(xor, row) for row in rows)
            self._listener.noted(Noted(step, dict(zip(digests, values, strict=True))))

    def saved(self, step: int, checkpoint: Path) -> None:
        """A checkpoint became whole."""
        if self._listener is not None:
            self._listener.saved(step, checkpoint)


class RecordFile:
    """The file, from the end of `step` on; what is later is dropped. A `with` resource.

    A checkpoint is told of by the thread that writes it.
    """

    def __init__(self, run: Path, step: int, life: Mapping[str, Any]):
        self._path = run / RECORD
        self._names: list[str] = []
        self._writing = Lock()
        self._is_torn = False  # by a write that failed, which ends the run
        try:
            drop_later(self._path, step)
            self._file = self._path.open("ab", buffering=0)  # so that closing has nothing left to write
        except OSError as error:
            raise self._unwritable(error) from None
        self._write({"step": step, "life": life})

    def noted(self, noted: Noted) -> None:
        """Write the digests of a step."""
        if (names := list(noted.digests)) != self._names:
            self._names = names
            self._write({"step": noted.step, "names": names})
        text = "".join(f"{digest:0{DIGITS}x}" for digest in noted.digests.values())
        self._write({"step": noted.step, "digests": text})

    def saved(self, step: int, checkpoint: Path) -> None:
        """Write the hashes of a checkpoint's tensors."""
        self._write({"step": step, "saved": dict(glance_at(checkpoint).manifest["tensors"])})

    def _write(self, line: Mapping[str, Any]) -> None:
        left = memoryview(json.dumps(line).encode() + b"\n")
        with self._writing:
            if self._is_torn:  # the next line would go on in the middle of one
                return
            try:
                while left:
                    left = left[self._file.write(left) :]
            except OSError as error:
                self._is_torn = True
                raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> DtrainError:
        return DtrainError(
            f"{self._path}: cannot be written ({error.strerror or error}); mend that and resume"
        )

    def __enter__(self) -> "RecordFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@dataclass(frozen=True)
class Record:
    """What is known of a run from its record; of one without, nothing."""

    path: Path
    lives: tuple[tuple[int, Mapping[str, Any]], ...]  # from which step on, and what it was
    saved: Mapping[int, Mapping[str, str]]  # hashes of all tensors by step

    def digests(self) -> Iterator[Noted]:
        """Those of each step, in order."""
        names: list[str] = []
        last = 0
        for number, (_, line) in enumerate(whole_lines(self.path) if self.path.is_file() else (), start=1):
            try:
                names = _strings(line.get("names", names))
                if "digests" not in line:
                    continue
                text, step = line["digests"], line["step"]
                values = [int(text[at : at + DIGITS], 16) for at in range(0, len(text), DIGITS)]
                if step <= last or len(text) != DIGITS * len(names):
                    raise ValueError("steps rise, and each tensor has a digest")
            except (TypeError, ValueError):
                raise _damaged(self.path, number) from None
            yield Noted(step, dict(zip(names, values, strict=True)))
            last = step


def read_record(run: Path) -> Record:
    """The record of a run. Raises DtrainError for a line that cannot be one of it."""
    path = run / RECORD
    lives, saved = [], {}
    for number, (_, line) in enumerate(whole_lines(path) if path.is_file() else (), start=1):
        if not isinstance(line.get("life", {}), dict) or not isinstance(line.get("saved", {}), dict):
            raise _damaged(path, number)
        if "life" in line:
            lives.append((line["step"], line["life"]))
        if "saved" in line:
            saved[line["step"]] = line["saved"]
    record = Record(path, tuple(lives), saved)
    for _ in record.digests():  # damage is told before anything is trained
        pass
    return record


def _strings(names: Any) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError("names are strings")
    return names


def _damaged(path: Path, number: int) -> CheckpointError:
    said = "was altered, no run writes this; move the file away to compare checkpoints and metrics alone"
    return CheckpointError(f"{path}:{number}: {said}")
