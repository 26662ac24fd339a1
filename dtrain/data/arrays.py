"""Examples from arrays in one file, held in memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dtrain.data.array_files import ArrayFile, Header, open_arrays
from dtrain.data.source import Description, Field, Part, Source
from dtrain.data.values import Channels, Range, field_of
from dtrain.errors import DataError
from dtrain.spec.table import kind

if TYPE_CHECKING:
    from dtrain.data.array_examples import ArrayExamples

PREFIXES: Mapping[Part, str] = {"train": "train_", "evaluate": "test_"}


@kind(Source, "arrays")
class Arrays(Source):
    """The arrays of one .npz or .safetensors file, one row an example.

    `train_image` is the field `image` of training, `test_image` that of evaluation. Where any
    name begins so, arrays with other names are left alone; where none does, every array serves
    both parts under its own name. uint8 arrays of (H, W), (H, W, C) or (C, H, W) are pictures.
    """

    path: Path  # .npz or .safetensors
    channels: Channels = "last"  # where (H, W, C) or (C, H, W) pictures keep their channels
    range: Range = (-1.0, 1.0)  # what black and white become

    def open(self, part: Part, seed: int) -> "ArrayExamples":
        from dtrain.data.array_examples import read_examples

        with open_arrays(self.path) as file:
            names = {field: header.name for field, header in self._headers(file, part).items()}
        return read_examples(self.path, names, self.channels, self.range)

    def describe(self, part: Part, seed: int) -> Description:
        with open_arrays(self.path) as file:
            headers = self._headers(file, part)
            fields = {
                name: self._field(name, header)._replace(classes=file.classes(header))
                for name, header in headers.items()
            }
        return Description(next(iter(headers.values())).shape[0], fields)

    def _headers(self, file: ArrayFile, part: Part) -> dict[str, Header]:
        """What is stored for the part, by field. Raises DataError where it will not do."""
        headers = {field: file.header(name) for field, name in _names(file.names, part).items()}
        if not headers:
            raise DataError(f"{self.path} holds no array for {part}; name one {PREFIXES[part]}image, say")
        lengths = {name: header.shape[0] if header.shape else 0 for name, header in headers.items()}
        if len(set(lengths.values())) > 1 or 0 in lengths.values():
            found = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise DataError(f"{self.path}: the arrays of {part} need equally many rows, and some: {found}")
        for name, header in headers.items():
            self._field(name, header)
        return headers

    def _field(self, name: str, header: Header) -> Field:
        try:
            return field_of(name, header.dtype, header.shape[1:], self.channels, self.range)
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from None


def _names(names: list[str], part: Part) -> dict[str, str]:
    """Field -> name in the file, of the arrays that belong to the part."""
    if not any(name.startswith(tuple(PREFIXES.values())) for name in names):
        return {name: name for name in names}
    prefix = PREFIXES[part]
    return {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
