"""What stored values become, by names of types and shapes alone; the same for every source.

8-bit pictures become floats in a range, channels first; whole numbers (labels, tokens) become
int64; floats keep their precision, but half floats become float32. `conversion` does it.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from dtrain.data.source import Field
from dtrain.errors import DataError
from dtrain.spec.table import Checked, Finite


def _rising(range: tuple[float, float]) -> tuple[float, float]:
    if range[0] >= range[1]:
        raise ValueError(f"black ({range[0]}) must lie below white ({range[1]})")
    return range


Range = Annotated[tuple[Finite, Finite], Checked(_rising)]
Channels = Literal["first", "last"]
Shape = tuple[int, ...]

# Every type that is taken, as NumPy names it, to what it becomes where it is no picture.
BECOMES: Mapping[str, str] = {
    "float16": "float32",
    "float32": "float32",
    **dict.fromkeys(("float64", "float96", "float128"), "float64"),
    **dict.fromkeys(("int8", "int16", "int32", "int64"), "int64"),
    **dict.fromkeys(("uint8", "uint16", "uint32", "uint64"), "int64"),
    "bool": "int64",
}


def field_of(name: str, dtype: str, shape: Shape, channels: Channels, range: Range) -> Field:
    """What an example's stored value of this type and shape becomes in the field `name`.

    Raises DataError where it holds no numbers, or where its channels seem to lie elsewhere.
    """
    check_numbers(name, dtype)
    if is_picture(dtype, len(shape)):
        return Field(picture_shape(name, shape, channels), "float32", range=range)
    return Field(shape, BECOMES[dtype])


def check_numbers(name: str, dtype: str) -> None:
    """Raise DataError unless values of this type are floats, whole numbers or booleans."""
    if dtype not in BECOMES:
        raise DataError(f"field {name!r} holds {dtype}, not floats, whole numbers or booleans")


def is_picture(dtype: str, axes: int) -> bool:
    """Whether examples of this type and so many axes are pictures: uint8 (H, W), (H, W, C) or (C, H, W)."""
    return dtype == "uint8" and axes in (2, 3)


def picture_shape(name: str, shape: Shape, channels: Channels) -> Shape:
    """The shape of a picture, channels first: (C, H, W).

    Raises DataError where only the other setting of `channels` gives a plausible picture.
    """
    if len(shape) == 2:
        return (1, *shape)
    wanted, other = (shape[2], shape[0]) if channels == "last" else (shape[0], shape[2])
    if wanted > 4 >= other:
        right = "first" if channels == "last" else "last"
        raise DataError(
            f"field {name!r}: pictures of shape {shape} have {wanted} channels if these come "
            f'{channels}; say data.channels = "{right}"'
        )
    return (shape[2], *shape[:2]) if channels == "last" else shape
