"""What lies in a safetensors file, read from its header alone, without torch or NumPy.

A length of eight bytes, a JSON header of that length, and the values of all tensors one after the other.
Nothing that a header says is believed before it is checked against the size of the file.

Source: the section "Format" of https://github.com/huggingface/safetensors
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dtrain.errors import CheckpointError
from dtrain.format.files import LARGEST, strict_table

MOST = 200_000  # tensors of a file
MOST_AXES = 64  # torch's own limit; the product of a million sides takes minutes
UNREADABLE = (ValueError, RecursionError, OSError)  # what a broken file leads to
BYTES = {  # of one value
    **{f"F{8 * size}": size for size in (2, 4, 8)},
    **{f"{kind}{8 * size}": size for size in (1, 2, 4, 8) for kind in "IU"},
    **dict.fromkeys(("BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    "BF16": 2,
    "C64": 8,
}


class Stored(NamedTuple):
    """One tensor of a file, and where its values lie."""

    name: str
    dtype: str  # as safetensors names it: F32, BF16, I64
    shape: tuple[int, ...]
    start: int  # bytes of the file before the first value
    size: int  # bytes of all values


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a file by name, in the order of their places.

    Raises CheckpointError if it cannot be read, or its header claims what the file has not.
    """
    try:
        if not path.is_file():  # a pipe would never end
            raise ValueError("it is missing, or not a file")
        with path.open("rb") as file:
            return header_of(file)
    except UNREADABLE as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def header_of(file: BinaryIO) -> dict[str, Stored]:
    """The same of an open file. Raises one of UNREADABLE."""
    raw = read_raw(file)
    size = file.seek(0, os.SEEK_END) - len(raw)
    found = [_stored(name, entry) for name, entry in _table(raw[8:]).items()]
    found.sort(key=lambda each: (each.start, each.size))
    place = 0
    for each in found:
        if each.start != place:
            raise ValueError("its header leaves gaps between tensors, or lays one over another")
        place += each.size
    if place != size:
        raise ValueError(f"its tensors have {place} bytes, and the file has {size} for them")
    return {each.name: each._replace(start=each.start + len(raw)) for each in found}


def read_raw(file: BinaryIO) -> bytes:
    """The bytes of a header, with its length before it. Raises ValueError if that cannot be."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = int.from_bytes(start := file.read(8), "little")
    if len(start) < 8 or length > end - 8:
        raise ValueError(f"its header is said to be {length} bytes long, and the file has {end}")
    if length > LARGEST:
        raise ValueError(f"its header is {length} bytes long; at most {LARGEST} would do")
    return start + file.read(length)


def header_bytes(tensors: Iterable[Stored], metadata: Mapping[str, str]) -> tuple[bytes, list[Stored]]:
    """What a file of these tensors begins with, and they in the order in which their values follow it.

    Wide types come first, as safetensors' own writer has them: so each value lies at a multiple of its width.
    Raises ValueError if they are more than would be read again.
    """
    ordered = sorted(tensors, key=lambda each: (-BYTES[each.dtype], each.name))
    # transformers opens no file that does not say whose tensors these are.
    table: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    place = 0
    for each in ordered:
        table[each.name] = {
            "dtype": each.dtype,
            "shape": list(each.shape),
            "data_offsets": [place, place + each.size],
        }
        place += each.size
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > LARGEST or len(ordered) > MOST:
        raise ValueError(f"{len(ordered):,} tensors are too many for a file")
    return len(text).to_bytes(8, "little") + text, ordered


def _table(text: bytes) -> dict[str, Any]:
    """The header as a table of tensors."""
    # Each tensor has one table and two lists; so a header of nothing but brackets takes no memory.
    if text.count(b"{") + text.count(b"[") > 3 * MOST + 2:
        raise ValueError(f"its header has more than {MOST:,} tensors")
    table = strict_table(text)
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata is not a table of texts")
    return table


def _stored(name: str, entry: Any) -> Stored:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end], **more}:
            numbers = [*shape, begin, end]
            if dtype not in BYTES:
                raise ValueError(
                    f"{name[:80]!r} holds {dtype[:20]!r}, which is no type of numbers known here"
                )
            is_whole = all(type(number) is int and number >= 0 for number in numbers)
            is_whole = is_whole and len(shape) <= MOST_AXES
            if is_whole and not more and math.prod(shape) * BYTES[dtype] == end - begin:
                return Stored(name, dtype, tuple(shape), begin, end - begin)
    raise ValueError(f"what its header says of {name[:80]!r} cannot be")
