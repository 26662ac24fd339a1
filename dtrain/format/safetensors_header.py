"""What lies in a safetensors file, read from its header alone, without torch or NumPy.

A length of eight bytes, a JSON header of that length, and the values of all tensors one after the other.

Source: the section "Format" of https://github.com/huggingface/safetensors
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dtrain.errors import CheckpointError
from dtrain.format.files import LARGEST, parse

BYTES = {  # of one value
    **{f"F{8 * size}": size for size in (2, 4, 8)},
    **{f"{kind}{8 * size}": size for size in (1, 2, 4, 8) for kind in "IU"},
    "BF16": 2,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "C64": 8,
}
MOST_AXES = 64  # torch's own limit; the product of a million numbers takes minutes


class Stored(NamedTuple):
    """One tensor of a file, and where its values lie."""

    name: str
    dtype: str  # as safetensors names it: F32, BF16, I64
    shape: tuple[int, ...]
    start: int  # bytes of the file before the first value
    size: int  # bytes of all values


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a file by name, in the order of their places.

    Raises CheckpointError if it cannot be read, or its header claims what the file has not: nothing is
    believed before it is checked against the file's size.
    """
    try:
        with path.open("rb") as file:
            raw, end = read_raw(file, path), file.seek(0, os.SEEK_END)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    table = parse(raw[8:], path)
    table.pop("__metadata__", None)
    stored = (_stored(path, name, entry) for name, entry in table.items())
    found = sorted(stored, key=lambda each: (each.start, each.size))
    place = 0
    for each in found:
        if each.start != place:
            raise CheckpointError(f"{path}: its header leaves gaps between tensors, or lays one over another")
        place += each.size
    if place != end - len(raw):
        raise CheckpointError(
            f"{path}: its tensors have {place} bytes, and the file has {end - len(raw)} for them"
        )
    return {each.name: each._replace(start=each.start + len(raw)) for each in found}


def read_raw(file: BinaryIO, path: Path) -> bytes:
    """The bytes of a header, with its length before it. Raises CheckpointError if that cannot be."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = int.from_bytes(start := file.read(8), "little")
    if len(start) < 8 or length > end - 8:
        raise CheckpointError(f"{path}: its header is said to be {length} bytes long, and the file has {end}")
    if length > LARGEST:
        raise CheckpointError(f"{path}: its header is {length} bytes long; at most {LARGEST} would do")
    return start + file.read(length)


def _stored(path: Path, name: str, entry: Mapping[str, Any]) -> Stored:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)], **more}:
            is_shape = len(shape) <= MOST_AXES and all(type(n) is int and n >= 0 for n in shape)
            is_placed = type(begin) is int and type(end) is int and 0 <= begin <= end
            if dtype not in BYTES:
                raise CheckpointError(
                    f"{path}: {name[:80]!r} holds {dtype[:20]!r}, which is no type of numbers known here"
                )
            if is_shape and is_placed and not more and math.prod(shape) * BYTES[dtype] == end - begin:
                return Stored(name, dtype, tuple(shape), begin, end - begin)
    raise CheckpointError(f"{path}: what its header says of {name[:80]!r} cannot be")
