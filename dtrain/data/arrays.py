"""Examples from arrays in one file, held in memory."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from dtrain.data.source import Batch, Field, Part, Source
from dtrain.data.values import Channels, Range, channels_first, check_numbers, finish, is_picture
from dtrain.errors import DataError
from dtrain.spec.table import kind

PREFIXES: Mapping[Part, str] = {"train": "train_", "evaluate": "test_"}

# What NumPy and safetensors raise for a broken file, or for types that NumPy lacks.
UNREADABLE = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, AttributeError, TypeError)


@kind(Source, "arrays")
class Arrays(Source):
    """The arrays of one .npz or .safetensors file, one row an example.

    `train_image` is the field `image` of training, `test_image` that of evaluation. Where any
    name begins so, arrays with other names are left alone; where none does, every array serves
    both parts under its own name. uint8 arrays of (H, W), (H, W, C) or (C, H, W) are pictures.
    """

    path: Path
    channels: Channels = "last"  # where (H, W, C) or (C, H, W) pictures keep their channels
    range: Range = (-1.0, 1.0)  # what black and white become

    def open(self, part: Part, seed: int) -> "ArrayExamples":
        if not self.path.exists():
            raise DataError(f"{self.path} does not exist; give data.path an .npz or .safetensors file")
        stored = _read(self.path, part)
        if not stored:
            raise DataError(f"{self.path} holds no array for {part}; name one {PREFIXES[part]}image, say")
        lengths = {name: len(values) if values.ndim else 0 for name, values in stored.items()}
        if len(set(lengths.values())) > 1 or 0 in lengths.values():
            found = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise DataError(f"{self.path}: the arrays of {part} need equally many rows, and some: {found}")
        try:
            prepared = {name: self._prepared(name, values) for name, values in stored.items()}
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from None
        return ArrayExamples(prepared, self.range)

    def _prepared(self, name: str, values: np.ndarray) -> np.ndarray:
        check_numbers(name, values)
        axes = values.ndim - 1
        if is_picture(values.dtype, axes):
            values = channels_first(name, values, axes, self.channels)
        return np.ascontiguousarray(values)


class ArrayExamples:
    """Rows of arrays. Pictures stay 8-bit in memory and become floats a batch at a time."""

    workers: ClassVar[int] = 0  # fetching costs less than asking another process for it

    def __init__(self, stored: Mapping[str, np.ndarray], range: Range):
        self._stored = stored  # field -> (examples, ...)
        self.range = range
        first = self.fetch(np.zeros(1, np.int64), 0)
        self.fields = {
            name: Field(values.shape[1:], values.dtype, _classes(stored[name]))
            for name, values in first.items()
        }

    def __len__(self) -> int:
        return len(next(iter(self._stored.values())))

    def fetch(self, indices: np.ndarray, epoch: int) -> Batch:
        # `take` copies whole rows: a third of the time of `values[indices]`.
        return {name: finish(values.take(indices, 0), self.range) for name, values in self._stored.items()}


def _classes(values: np.ndarray) -> int | None:
    """One more than the largest of single whole numbers; None of anything else, or where one is below 0."""
    if values.ndim != 1 or values.dtype.kind not in "iu" or values.min() < 0:
        return None
    return int(values.max()) + 1


def _read(path: Path, part: Part) -> dict[str, np.ndarray]:
    """The part's arrays by field; arrays of the other part are not read."""
    if path.suffix == ".npz":
        return _read_npz(path, part)
    if path.suffix == ".safetensors":
        return _read_safetensors(path, part)
    raise DataError(f"{path}: arrays come from an .npz or a .safetensors file, not {path.suffix or 'this'}")


def _read_npz(path: Path, part: Part) -> dict[str, np.ndarray]:
    try:
        # Opened here because np.load leaves a broken archive open; without pickle, which could run code.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {field: file[name] for name, field in _fields(file.files, part).items()}
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def _read_safetensors(path: Path, part: Part) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            names = _fields(sorted(file.keys()), part)
            return {field: file.get_tensor(name) for name, field in names.items()}
    except (SafetensorError, *UNREADABLE) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read ({error}); write the file again, without Python objects in it")


def _fields(names: list[str], part: Part) -> dict[str, str]:
    """Name in the file -> field, for the arrays that belong to the part."""
    if not any(name.startswith(tuple(PREFIXES.values())) for name in names):
        return {name: name for name in names}
    prefix = PREFIXES[part]
    return {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}
