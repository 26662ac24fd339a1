"""The arrays of a file, read into memory and fetched a batch at a time."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from dtrain.data.array_files import readable
from dtrain.data.conversion import channels_first, field_like, finish
from dtrain.data.source import Arrayed, Batch
from dtrain.data.values import Channels, Range


class ArrayExamples(Arrayed):
    """Rows of arrays. Pictures stay 8-bit in memory and become floats a batch at a time."""

    workers: ClassVar[int] = 0  # fetching costs less than asking another process for it

    def __init__(self, stored: Mapping[str, np.ndarray], range: Range):
        self._stored = stored  # field -> (examples, ...), pictures channels first
        self.range = range
        first = self.fetch(np.zeros(1, np.int64), 0)
        self.fields = {
            name: field_like(values, stored[name][:1], range)._replace(classes=_classes(stored[name]))
            for name, values in first.items()
        }

    def __len__(self) -> int:
        return len(next(iter(self._stored.values())))

    def arrays(self) -> Mapping[str, np.ndarray]:
        return self._stored

    def fetch(self, indices: np.ndarray, epoch: int) -> Batch:
        # `take` copies whole rows: a third of the time of `values[indices]`.
        return {name: finish(values.take(indices, 0), self.range) for name, values in self._stored.items()}


def read_examples(path: Path, names: Mapping[str, str], channels: Channels, range: Range) -> ArrayExamples:
    """Read the arrays `names`, field to name in the file; arrays of the other part are not read.

    Raises DataError if the file is damaged.
    """
    read = _read_npz if path.suffix == ".npz" else _read_safetensors
    stored = {
        name: np.ascontiguousarray(channels_first(name, values, values.ndim - 1, channels))
        for name, values in read(path, names).items()
    }
    return ArrayExamples(stored, range)


def _classes(values: np.ndarray) -> int | None:
    """One more than the largest of single whole numbers; None of anything else, or where one is below 0."""
    if values.ndim != 1 or values.dtype.kind not in "iu" or values.min() < 0:
        return None
    return int(values.max()) + 1


def _read_npz(path: Path, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    # Opened here because np.load leaves a broken archive open; without pickle, which could run code.
    with readable(path), path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        return {field: file[name] for field, name in names.items()}


def _read_safetensors(path: Path, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    with readable(path, SafetensorError), safe_open(path, framework="np") as file:
        return {field: file.get_tensor(name) for field, name in names.items()}
