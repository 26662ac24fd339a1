"""Whether files are those that a manifest lists: every byte is a header's, a tensor's, or a small file's."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from dtrain.errors import CheckpointError
from dtrain.format.files import MANIFEST, PARTS, hash_of, hash_of_pieces
from dtrain.format.safetensors_header import Stored, read_header, read_raw

PIECE = 1 << 22  # bytes read at once


def digest_of(file: Path, form: int) -> str:
    """What a manifest records of a file: of one of tensors the hash of its header, as each has its own.

    In format 1 that of the whole file. Raises CheckpointError if it cannot be read.
    """
    try:
        with file.open("rb") as opened:
            if form != 1 and holds_tensors(file.name):
                return hash_of(read_raw(opened))
            return hash_of_pieces(iter(lambda: opened.read(PIECE), b""), form)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None


def altered(path: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the tensors of a checkpoint, in words; nothing if they are whole.

    Files and headers were checked before.
    """
    files = [name for name in sorted(manifest["files"]) if holds_tensors(name)]
    found: set[str] = set()
    for name in files:
        part, stored = part_of(name), read_header(path / name)
        for each in stored.values():
            if f"{part}/{each.name}" in found:
                yield f"{path / name}: {each.name} stands in another file, too"
            found.add(f"{part}/{each.name}")
        if manifest["format"] == 1:  # the whole file's hash was checked
            continue
        with (path / name).open("rb") as file:
            for each in stored.values():
                listed = manifest["tensors"].get(f"{part}/{each.name}")
                if listed is not None and _hash(file, each) != listed:
                    yield f"{path / name} was altered: {each.name} differs from its hash in {MANIFEST}"
    if lacking := manifest["tensors"].keys() ^ found:
        part = sorted(lacking)[0].partition("/")[0]
        yield f"{path}: {part} hold other tensors than {MANIFEST} lists ({_some(lacking)})"


def holds_tensors(name: str) -> bool:
    """Whether a file of a checkpoint is one of tensors, by its name."""
    return name.endswith(".safetensors") and part_of(name) in PARTS


def part_of(name: str) -> str:
    """The part of a checkpoint of which a file has tensors."""
    return name.partition("-")[0]


def _hash(file: BinaryIO, tensor: Stored) -> str:
    file.seek(tensor.start)
    starts = range(0, tensor.size, PIECE)
    return hash_of_pieces(file.read(min(PIECE, tensor.size - start)) for start in starts)


def _some(names: set[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")
