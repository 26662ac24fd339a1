"""Stored values to what a model sees; the same for every source.

8-bit pictures become floats in a range, channels first; whole numbers (labels, tokens) become
int64; floats keep their precision, but half floats become float32.
"""

from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator

from dtrain.errors import DataError
from dtrain.spec.table import Finite


def _rising(range: tuple[float, float]) -> tuple[float, float]:
    if range[0] >= range[1]:
        raise ValueError(f"black ({range[0]}) must lie below white ({range[1]})")
    return range


Range = Annotated[tuple[Finite, Finite], AfterValidator(_rising)]
Channels = Literal["first", "last"]


def is_picture(dtype: np.dtype, axes: int) -> bool:
    """Whether examples of this type and so many axes are pictures: uint8 (H, W), (H, W, C) or (C, H, W)."""
    return dtype == np.uint8 and axes in (2, 3)


def channels_first(name: str, pixels: np.ndarray, axes: int, channels: Channels) -> np.ndarray:
    """View pictures, whose last `axes` axes are one example's, as (..., C, H, W).

    Raises DataError where only the other setting of `channels` gives a plausible picture.
    """
    if axes == 2:
        return np.expand_dims(pixels, -3)
    last, first = pixels.shape[-1], pixels.shape[-3]
    wanted, other = (last, first) if channels == "last" else (first, last)
    if wanted > 4 >= other:
        right = "first" if channels == "last" else "last"
        raise DataError(
            f"field {name!r}: pictures of shape {pixels.shape[-3:]} have {wanted} channels if these come "
            f'{channels}; say data.channels = "{right}"'
        )
    return np.moveaxis(pixels, -1, -3) if channels == "last" else pixels


def check_numbers(name: str, values: np.ndarray) -> None:
    """Raise DataError unless the values are floats, whole numbers or booleans."""
    if values.dtype.kind not in "fiub":
        raise DataError(f"field {name!r} holds {values.dtype}, not floats, whole numbers or booleans")


def finish(values: np.ndarray, range: Range) -> np.ndarray:
    """Turn a batch of stored values, its pictures channels first, into what a model sees."""
    dtype = values.dtype
    if dtype.kind == "f":
        return values.astype(np.float64 if dtype.itemsize > 4 else np.float32, copy=False)
    if is_picture(dtype, values.ndim - 1):
        return scale(values, range)
    return values.astype(np.int64, copy=False)


def scale(pixels: np.ndarray, range: Range) -> np.ndarray:
    """Map 0..255 linearly to `range`, as float32."""
    low, high = range
    scaled = pixels.astype(np.float32)
    scaled *= (high - low) / 255
    scaled += low
    return scaled
