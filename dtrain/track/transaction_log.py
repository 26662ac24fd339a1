"""Read, and mend, the `.wandb` files that earlier lives of a run left behind.

wandb 0.31 writes them (in Go) but has no Python reader any more. The framing is that of LevelDB's
log: blocks of 32 KiB holding chunks of checksum (4 bytes), length (2), kind (1) and data, behind a
header of 7 bytes; W&B's checksum is the plain CRC-32 of kind and data. A record is a protobuf.
Source: github.com/google/leveldb, doc/log_format.md.
"""

import json
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # it has no types

_BLOCK = 32 * 1024
_HEADER = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
_CHUNK = struct.Struct("<IHB")
_FULL, _FIRST, _LAST = 1, 2, 4  # kinds of chunk: a whole record, or its first or last part

Standing = dict[int, set[str]]  # step -> names of the values that stand in the files


def find_logs(folder: Path, run_id: str) -> list[Path]:
    """The files of every earlier life of the run, online or offline."""
    files = folder.glob("*run-*/*.wandb")
    return sorted(file for file in files if file.stem == f"run-{run_id}" and not file.parent.is_symlink())


def wait_until_closed(logs: Sequence[Path], seconds: float) -> None:
    """Wait for the wandb-core of a killed process, which lives on for about 3 s and may still write.

    Raises `TimeoutError` if one of `logs` is open after `seconds`: then the run is alive elsewhere.
    """
    end = time.monotonic() + seconds
    while logs and (open_log := _open_log(logs)):
        if time.monotonic() > end:
            raise TimeoutError(f"another process is still writing to {open_log}")
        time.sleep(0.05)


def read_standing(logs: Sequence[Path]) -> Standing:
    """Which values are recorded for which step, over all of `logs`."""
    from wandb.proto import wandb_internal_pb2

    standing: Standing = {}
    for log in logs:
        for data, _ in read_records(log):
            record = wandb_internal_pb2.Record.FromString(data)  # type: ignore[attr-defined]  # made at import
            if not record.HasField("history"):
                continue
            # A picture is many items, under nested keys that begin with its name.
            row = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            if "step" in row:
                standing.setdefault(json.loads(row["step"]), set()).update(row)
    return standing


def mend(logs: Sequence[Path]) -> list[Path]:
    """Cut torn tails off, and set files aside that never got as far as naming their run; return the others.

    At a torn tail `wandb sync` gives up on all later files of the run, and at a file that names
    no run it gives up on everything (core/internal/runsync/runsyncoperation.go).
    """
    from wandb.proto import wandb_internal_pb2

    kept = []
    for log in logs:
        whole, names_its_run = 0, False
        for data, whole in read_records(log):  # noqa: B007, the last one counts
            if not names_its_run:
                record = wandb_internal_pb2.Record.FromString(data)  # type: ignore[attr-defined]  # made at import
                names_its_run = record.HasField("run")
        if not names_its_run:
            log.rename(log.with_suffix(".torn"))
            continue
        kept.append(log)
        if whole < log.stat().st_size:
            with log.open("r+b") as file:
                file.truncate(whole)
    return kept


def read_records(log: Path) -> Iterator[tuple[bytes, int]]:
    """Yield each whole record and where in the file it ends; stop at the first that is torn or damaged."""
    with log.open("rb") as file:
        start, parts = 0, list[bytes]()
        while block := file.read(_BLOCK):
            position = 0
            if start == 0:
                if not block.startswith(_HEADER):
                    return
                position = len(_HEADER)
            while position + _CHUNK.size <= len(block):  # a shorter rest of a block is padding
                checksum, length, kind = _CHUNK.unpack_from(block, position)
                position += _CHUNK.size
                data = block[position : position + length]
                position += length
                is_first = kind in (_FULL, _FIRST)
                if zlib.crc32(data, zlib.crc32(bytes([kind]))) != checksum or is_first == bool(parts):
                    return
                parts.append(data)
                if kind in (_FULL, _LAST):
                    yield b"".join(parts), start + position
                    parts = []
            start += len(block)


def _open_log(logs: Sequence[Path]) -> Path | None:
    wanted = {str(log.resolve()): log for log in logs}
    for process in psutil.process_iter():
        try:
            if process.name() == "wandb-core":
                for file in process.open_files():
                    if file.path in wanted:
                        return wanted[file.path]
        except psutil.Error:  # it ended, or it is another user's
            continue
    return None
