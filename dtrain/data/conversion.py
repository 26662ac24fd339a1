"""Stored values to what a model sees, with NumPy: does what `values` says."""

from functools import cache

import numpy as np

from dtrain.data.source import Field
from dtrain.data.values import BECOMES, Channels, Range, is_picture, picture_shape


@cache  # making a name takes microseconds, and every batch asks
def name_of(dtype: np.dtype) -> str:
    """The name of a type, whatever the order of its bytes: float32 of >f4 too."""
    return str(dtype.newbyteorder("="))


def channels_first(name: str, values: np.ndarray, axes: int, channels: Channels) -> np.ndarray:
    """View pictures, whose last `axes` axes are one example's, as (..., C, H, W); other values as they are.

    Raises DataError where only the other setting of `channels` gives a plausible picture.
    """
    if not is_picture(name_of(values.dtype), axes):
        return values
    picture_shape(name, values.shape[-axes:], channels)
    if axes == 2:
        return np.expand_dims(values, -3)
    return np.moveaxis(values, -1, -3) if channels == "last" else values


def finish(values: np.ndarray, range: Range) -> np.ndarray:
    """Turn a batch of stored values, its pictures channels first, into what a model sees."""
    dtype = name_of(values.dtype)
    if is_picture(dtype, values.ndim - 1):
        return scale(values, range)
    return values.astype(BECOMES[dtype], copy=False)


def field_like(finished: np.ndarray, stored: np.ndarray, range: Range) -> Field:
    """What a field looks like, given a batch of it as it is stored and as it is finished."""
    is_scaled = is_picture(name_of(stored.dtype), stored.ndim - 1)
    return Field(finished.shape[1:], name_of(finished.dtype), range=range if is_scaled else None)


def scale(pixels: np.ndarray, range: Range) -> np.ndarray:
    """Map 0..255 linearly to `range`, as float32."""
    low, high = range
    scaled = pixels.astype(np.float32)
    scaled *= (high - low) / 255
    scaled += low
    return scaled
