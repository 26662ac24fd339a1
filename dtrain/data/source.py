"""Where examples come from: random access by index, in named fields."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from dtrain.spec.table import Table

if TYPE_CHECKING:
    import numpy as np

Batch = Mapping[str, "np.ndarray"]  # field -> values, batch axis first
Part = Literal["train", "evaluate"]


class Field(NamedTuple):
    """What one field of a batch looks like, so that models can be checked against data."""

    shape: tuple[int, ...]  # without the batch axis; of pictures (C, H, W)
    dtype: str  # as NumPy names it: "float32", "int64"
    classes: int | None = None  # of whole-number labels, where known: they are below it
    range: tuple[float, float] | None = None  # of pictures: what black and white have become

    @property
    def holds_fractions(self) -> bool:
        return self.dtype.startswith("float")

    @property
    def holds_whole_numbers(self) -> bool:
        return self.dtype.startswith(("int", "uint"))


@dataclass(frozen=True)
class Description:
    """What one part of a source holds."""

    count: int  # examples
    fields: Mapping[str, Field]


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

    def fetch(self, indices: "np.ndarray", epoch: int) -> Batch:
        """The examples at `indices`, in that order; what is random in them depends on
        (seed, epoch, index) alone. Raises DataError naming what cannot be read."""
        ...


@runtime_checkable
class Spelling(Protocol):
    """Examples whose tokens can be read: those that a system draws as samples are written as text."""

    def decode(self, tokens: "np.ndarray") -> str:
        """The text that tokens (length,) stand for."""
        ...


class Stretch(NamedTuple):
    """Bytes of a file that examples are made of."""

    name: str  # among the files of the part, wherever these lie: "class/file"; "" where it tells nothing
    path: Path
    start: int
    size: int  # bytes


class Filed(ABC):
    """Examples that are made of files: a run that goes on needs the same bytes."""

    @abstractmethod
    def files(self) -> Sequence[Stretch]:
        """All of them, in the order of the examples. Raises DataError if one is missing."""


class Arrayed(ABC):
    """Examples that are rows of arrays in memory: a run that goes on needs the same."""

    @abstractmethod
    def arrays(self) -> Mapping[str, "np.ndarray"]:
        """The arrays as they are stored."""


class Source(Table):
    """The `[data]` table of a recipe. `open` and `describe` read; nothing else touches a file."""

    evaluated: ClassVar[str] = "path"  # the key of the file or folder that is evaluated on

    @abstractmethod
    def open(self, part: Part, seed: int) -> Examples:
        """Open the examples of one part. Raises DataError if it is missing or unreadable."""

    def describe(self, part: Part, seed: int) -> Description:
        """Say what `open` would give. Raises DataError where the part is missing or will not do.

        The sources that come with dtrain read headers and names alone, without NumPy, so that
        `dtrain check` answers at once; damage further inside a file is found when it is opened.
        """
        examples = self.open(part, seed)
        return Description(len(examples), examples.fields)
