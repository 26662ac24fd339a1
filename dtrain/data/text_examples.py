"""The bytes of a text file, mapped into memory and cut into windows when they are fetched."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from dtrain.data.source import Batch, Field, Filed, Part, Stretch
from dtrain.data.text import Span, Text
from dtrain.errors import DataError
from dtrain.spec.keys import seed_of

CHUNK = 1 << 24  # bytes looked at at once


class TextExamples(Filed):
    """Windows of one part. Only what is fetched is read, so a file may be larger than the memory."""

    workers: ClassVar[int] = 0  # fetching costs less than asking another process for it
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)  # of pictures, of which there are none

    def __init__(self, source: Text, part: Part, seed: int, *, span: Span, fields: Mapping[str, Field]):
        self.fields = fields
        self._source, self._seed, self._span = source, seed, span
        self._trains = part == "train"
        try:
            mapped = np.memmap(span.path, np.uint8, "r", span.start, (span.size,))
        except (OSError, ValueError) as error:
            raise DataError(f"{span.path} cannot be read ({error})") from error
        self._bytes = mapped.view(np.ndarray)
        self._weight = np.float32(self._characters() / span.size)

    def __len__(self) -> int:
        return self._span.windows

    def files(self) -> list[Stretch]:
        return [Stretch("", self._span.path, self._span.start, self._span.size)]

    def fetch(self, indices: np.ndarray, epoch: int) -> Batch:
        length, size = self._source.length, self._span.size
        first, counted = self._of_training(indices, epoch) if self._trains else self._of_evaluation(indices)
        place = first[:, None] + np.arange(length)  # (N, length), in the text
        counts = (place >= counted[:, None]) & (place < size)
        place = np.minimum(place, size - 1)  # of a text shorter than a window, the rest has no weight
        before = np.where(place > 0, self._bytes[place - 1], 0)
        return {
            "token": before.astype(np.int64),
            "next_token": self._bytes[place].astype(np.int64),
            "weight": counts * self._weight,
        }

    def decode(self, tokens: np.ndarray) -> str:
        """The text that tokens stand for; bytes that make no letter of UTF-8 become the sign for that."""
        return tokens.astype(np.uint8).tobytes().lstrip(b"\0").decode("utf-8", "replace")

    def _characters(self) -> int:
        """Characters in the part, if it is UTF-8: bytes that do not go on with one."""
        parts = (self._bytes[first : first + CHUNK] for first in range(0, self._span.size, CHUNK))
        return int(sum(np.count_nonzero((part & 0xC0) != 0x80) for part in parts))

    def _of_training(self, indices: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Where windows begin, and what in them is the first that counts: all of it."""
        length = self._source.length
        first = seed_of(self._seed, "window", epoch) % length + indices * length
        return first, first

    def _of_evaluation(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same where each window counts from the end of the one before; the last one reaches back."""
        length, stride = self._source.length, self._source.stride
        first = np.minimum(indices * stride, max(self._span.size - length, 0))
        return first, np.where(indices > 0, indices * stride + length - stride, 0)
