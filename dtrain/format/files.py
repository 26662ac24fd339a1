"""A checkpoint's files: their names, hashes, and the manifest that makes it whole."""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from blake3 import blake3

from dtrain.errors import CheckpointError

FORMAT = 2  # what is written; 1 had other hashes (BLAKE2b), one file a rank and no index files
FORMATS = (1, 2)  # what is read
PARTS = ("models", "optimizers", "averages")
RECIPE, STATE, MANIFEST = "recipe.toml", "state.json", "manifest.json"
RECORD = "record.jsonl"  # beside recipe.toml in a run's folder: what `dtrain reproduce` compares with
PARTIAL = ".partial"  # beside checkpoints/: what is being written or removed
UNSENT = ".unsent"  # in a run's folder while its copy elsewhere lacks something
ORIGIN = "origin.json"  # in the folder of a run that began from a checkpoint of another: which one
Item = TypeVar("Item")
LARGEST = 1 << 24  # bytes of a JSON file or header: some 100,000 tensors
MOST = 1_500_000  # values in a JSON file: each takes 50 times as much memory as "[]," does there
SEAL = re.compile(rb'\{\n "checksum": "([0-9a-f]{32})",\n')  # how a manifest begins; without it it was hashed


def folder_name(step: int) -> str:
    """`step-00002000`: names sort as steps do."""
    return f"step-{step:08d}"


def shard_name(part: str, number: int, count: int) -> str:
    """`models-00001-of-00002.safetensors`, numbered from 1."""
    return f"{part}-{number:05d}-of-{count:05d}.safetensors"


def index_name(part: str) -> str:
    """Where Hugging Face's tools look up which file has a tensor."""
    return f"{part}.safetensors.index.json"


class Hash:
    """The hash of bytes that a manifest of a format records: 128 bits of BLAKE3, some GB a second."""

    def __init__(self, form: int = FORMAT):
        self._state = blake2b(digest_size=16) if form == 1 else blake3()
        self._how = {} if form == 1 else {"length": 16}

    def update(self, data: bytes | memoryview) -> None:
        """Go on with further bytes; threads do so at once."""
        self._state.update(data)

    def text(self) -> str:
        """The hash of all bytes so far."""
        return str(self._state.hexdigest(**self._how))


def hash_of(data: bytes | memoryview, form: int = FORMAT) -> str:
    """The hash of bytes at once."""
    state = Hash(form)
    state.update(data)
    return state.text()


def in_groups(items: Iterable[Item], size: Callable[[Item], int], most: int) -> list[list[Item]]:
    """Items in their order, in groups of at most so many bytes, or of a single item that has more."""
    groups: list[list[Item]] = []
    room = 0
    for item in items:
        if not groups or size(item) > room:
            groups.append([])
            room = most
        groups[-1].append(item)
        room -= size(item)
    return groups


def canonical(value: Any) -> bytes:
    """JSON with one spelling, so that it can be hashed."""
    return json.dumps(value, sort_keys=True, allow_nan=False, indent=1).encode()


def sealed(manifest: Mapping[str, Any]) -> bytes:
    """A manifest's bytes with its own checksum inside."""
    return canonical({**manifest, "checksum": hash_of(canonical(manifest), _format_of(manifest))})


def unseal(path: Path) -> dict[str, Any]:
    """Read a manifest. Raises CheckpointError if it is missing, altered or of a later format."""
    if not os.path.lexists(path):
        raise CheckpointError(f"{path.parent} is not a checkpoint: it has no {MANIFEST}")
    text = read_small(path)
    manifest = parse(text, path)
    manifest.pop("checksum", None)
    form = manifest.get("format")
    if type(form) is int and form > FORMAT:
        known = " and ".join(map(str, FORMATS))
        raise CheckpointError(f"{path} has format {form}; this dtrain reads formats {known}")
    seal = SEAL.match(text)
    if seal is None or hash_of(b"{\n" + text[seal.end() :], _format_of(manifest)) != seal[1].decode():
        raise CheckpointError(f"{path} was altered: its checksum differs")
    if type(form) is not int or form not in FORMATS:
        raise CheckpointError(f"{path} is not one of dtrain's: it has no format")
    return manifest


def read_small(path: Path) -> bytes:
    """A file that is read whole. Raises CheckpointError if it cannot be, or is too large for one of ours."""
    try:
        if path.is_symlink() or not path.is_file():  # a link may lead anywhere, and a pipe would never end
            raise CheckpointError(f"{path} is missing, or not a file of this checkpoint")
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if len(data) > LARGEST:
        raise CheckpointError(f"{path} has more than {LARGEST:,} bytes; a checkpoint's own has fewer")
    return data


def check_amount(text: bytes, path: Path) -> None:
    """Raise CheckpointError of JSON, to be written or to be read, that is too large for one of ours."""
    if len(text) > LARGEST or sum(text.count(mark) for mark in (b",", b"[", b"{")) > MOST:
        said = f"has more than {LARGEST:,} bytes, or {MOST:,} values: too many tensors for one file"
        raise CheckpointError(f"{path} {said}, or none of ours")


def parse(text: bytes, path: Path) -> dict[str, Any]:
    """The table that JSON holds. Raises CheckpointError of what is none, also of NaN and of a key twice."""
    check_amount(text, path)
    try:
        return strict_table(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def strict_table(text: bytes) -> dict[str, Any]:
    """The same. Raises ValueError, and RecursionError of what is too deep."""
    table = json.loads(
        text.decode(), parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_each_once
    )
    if not isinstance(table, dict):
        raise ValueError("it holds no table")
    return table


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is more than a number can be")
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a key stands there twice")
    return table


def _format_of(manifest: Mapping[str, Any]) -> int:
    return 1 if manifest.get("format") == 1 else FORMAT


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
