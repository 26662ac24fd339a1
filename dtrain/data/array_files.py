"""Which arrays lie in an .npz or .safetensors file: read from its headers, without NumPy.

A header is all that is read of an array of any size, but for labels, whose largest says how many
classes there are.
"""

import ast
import math
import re
import sys
import zipfile
import zlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dtrain.errors import DataError
from dtrain.format.safetensors_header import header_of

# What a broken file leads to, in here, in NumPy and in safetensors' own reader.
UNREADABLE = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, RuntimeError)
LONGEST_NPY = 10_000  # bytes of a header; what NumPy's own reader takes
CHUNK = 1 << 20  # bytes; divisible by the size of every number

NPY_KINDS = {"f": "float", "i": "int", "u": "uint", "c": "complex"}
SAFETENSORS = {  # types to NumPy's names
    **{f"F{8 * size}": f"float{8 * size}" for size in (2, 4, 8)},
    **{f"I{8 * size}": f"int{8 * size}" for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": f"uint{8 * size}" for size in (1, 2, 4, 8)},
    "C64": "complex64",
    "BOOL": "bool",
}
CODES = {  # of whole numbers in the module `array`
    **{f"int{8 * array(code).itemsize}": code for code in "bhiq"},
    **{f"uint{8 * array(code).itemsize}": code for code in "BHIQ"},
}


class Header(NamedTuple):
    """One array, and where its values lie."""

    name: str  # in the file
    dtype: str  # as NumPy names it, whatever the order of its bytes: float32 of >f4 too
    shape: tuple[int, ...]
    is_swapped: bool  # its bytes are in the other order than this machine's
    start: int  # bytes before the first value
    size: int  # bytes of all values


class ArrayFile(ABC):
    """A file of named arrays, opened."""

    names: list[str]

    @abstractmethod
    def header(self, name: str) -> Header:
        """What is said of an array. Raises one of UNREADABLE where that cannot be."""

    @abstractmethod
    def stream(self, header: Header) -> BinaryIO:
        """A stream that stands at the first value of an array."""

    def classes(self, header: Header) -> int | None:
        """One more than the largest of single whole numbers; None of others, or where one is below 0."""
        if len(header.shape) != 1 or header.dtype not in CODES:
            return None
        largest, left, stream = -1, header.size, self.stream(header)
        while left and (chunk := stream.read(min(left, CHUNK))):
            left -= len(chunk)
            values = array(CODES[header.dtype], chunk)
            if header.is_swapped:
                values.byteswap()
            if min(values) < 0:
                return None
            largest = max(largest, max(values))
        return largest + 1


@contextmanager
def open_arrays(path: Path) -> Iterator[ArrayFile]:
    """Open a file of arrays. Raises DataError, here or while it is used, if it cannot be read."""
    if not path.exists():
        raise DataError(f"{path} does not exist; give data.path an .npz or .safetensors file")
    if path.suffix not in (".npz", ".safetensors"):
        raise DataError(
            f"{path}: arrays come from an .npz or a .safetensors file, not {path.suffix or 'this'}"
        )
    with readable(path), path.open("rb") as file:
        yield NpzFile(file) if path.suffix == ".npz" else SafetensorsFile(file)


@contextmanager
def readable(path: Path, *more: type[Exception]) -> Iterator[None]:
    """Raise DataError where what is done inside shows the file to be broken."""
    broken: tuple[type[Exception], ...] = (*UNREADABLE, *more)
    try:
        yield
    except broken as error:
        raise DataError(
            f"{path} cannot be read ({error}); write the file again, without Python objects in it"
        ) from error


class NpzFile(ArrayFile):
    """A zip archive of .npy files.

    Source: "NEP 1: A simple file format for NumPy arrays", and the versions 2 and 3 that followed it.
    """

    def __init__(self, file: BinaryIO):
        self._archive = zipfile.ZipFile(file)
        self._members = {name.removesuffix(".npy"): name for name in self._archive.namelist()}
        self.names = list(self._members)

    def header(self, name: str) -> Header:
        with self._archive.open(self._members[name]) as stream:
            said = _read_npy_header(name, stream)
            start = stream.tell()
        match said:
            case {"descr": descr, "fortran_order": bool(), "shape": tuple() as shape} if _is_shape(shape):
                dtype, itemsize, is_big = _npy_type(name, descr)
            case _:
                raise ValueError(f"the header of {name} is broken")
        size = math.prod(shape) * itemsize
        if size > self._archive.getinfo(self._members[name]).file_size - start:
            raise ValueError(f"{name} has fewer values than its header says")
        return Header(name, dtype, shape, is_big != (sys.byteorder == "big"), start, size)

    def stream(self, header: Header) -> BinaryIO:
        stream: Any = self._archive.open(self._members[header.name])
        stream.seek(header.start)
        return stream  # type: ignore[no-any-return]


def _read_npy_header(name: str, stream: Any) -> Any:
    magic = stream.read(8)
    if len(magic) < 8 or magic[:6] != b"\x93NUMPY" or magic[6] not in (1, 2, 3):
        raise ValueError(f"{name} is not an array in NumPy's format")
    version = magic[6]
    length = int.from_bytes(stream.read(2 if version == 1 else 4), "little")
    if length > LONGEST_NPY:
        raise ValueError(f"the header of {name} is {length} bytes long")
    try:
        return ast.literal_eval(stream.read(length).decode("utf-8" if version == 3 else "latin-1"))
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise ValueError(f"the header of {name} is broken") from None


def _npy_type(name: str, descr: Any) -> tuple[str, int, bool]:
    """The type's name, the bytes of one value, whether they begin with the highest.

    Types that are no numbers keep the name that the file gives them, and have no size.
    """
    if isinstance(descr, str) and "O" in descr:
        raise ValueError(f"{name} holds Python objects")
    number = re.fullmatch(r"([<>|=]?)([fiuc])(\d{1,2})", descr) if isinstance(descr, str) else None
    if number is None:
        return ("bool", 1, False) if descr in ("|b1", "b1", "?") else (str(descr), 0, False)
    order, kind, itemsize = number[1], number[2], int(number[3])
    is_big = order == ">" or (order in ("=", "") and sys.byteorder == "big")
    return f"{NPY_KINDS[kind]}{8 * itemsize}", itemsize, is_big


class SafetensorsFile(ArrayFile):
    """Tensors, of which the header says all."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._tensors = header_of(file)
        self.names = sorted(self._tensors)

    def header(self, name: str) -> Header:
        _, code, shape, start, size = self._tensors[name]
        if code not in SAFETENSORS:
            raise ValueError(f"{name} holds {code}, which NumPy lacks")
        return Header(name, SAFETENSORS[code], shape, sys.byteorder == "big", start, size)

    def stream(self, header: Header) -> BinaryIO:
        self._file.seek(header.start)
        return self._file


def _is_shape(shape: tuple[Any, ...] | list[Any]) -> bool:
    return all(type(length) is int and length >= 0 for length in shape)
