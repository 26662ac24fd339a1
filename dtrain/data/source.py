"""Where examples come from: random access by index, in named fields."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

import numpy as np

from dtrain.spec.table import Table

Batch = Mapping[str, np.ndarray]  # field -> values, batch axis first
Part = Literal["train", "evaluate"]


class Field(NamedTuple):
    """What one field of an example looks like, so that models can be checked against data."""

    shape: tuple[int, ...]  # without the batch axis
    dtype: np.dtype
    classes: int | None = None  # of whole-number labels, where known: they are below it


class Examples(Protocol):
    """One part of a source, opened: `len(examples)` of them, fetched by index.

    An instance is pickled into worker processes when `workers` is not 0.
    """

    @property
    def workers(self) -> int: ...  # processes that fetch ahead; 0 fetches in the trainer itself

    @property
    def range(self) -> tuple[float, float]: ...  # of pictures: what black and white have become

    @property
    def fields(self) -> Mapping[str, Field]: ...

    def __len__(self) -> int: ...

    def fetch(self, indices: np.ndarray, epoch: int) -> Batch:
        """The examples at `indices`, in that order; what is random in them depends on
        (seed, epoch, index) alone. Raises DataError naming what cannot be read."""
        ...


class Source(Table):
    """The `[data]` table of a recipe. `open` reads; nothing else touches a file."""

    @abstractmethod
    def open(self, part: Part, seed: int) -> Examples:
        """Open the examples of one part. Raises DataError if it is missing or unreadable."""
