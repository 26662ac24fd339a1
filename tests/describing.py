"""A source opened and described: the two must agree, in what they give and in what they refuse."""

import numpy as np
import pytest

from dtrain.data.source import Description, Examples, Part, Source
from dtrain.errors import DataError


def opened(source: Source, part: Part = "train", seed: int = 0) -> Examples:
    """Open a part, having seen that its description, its fields and its first batch are alike."""
    examples = source.open(part, seed)
    assert source.describe(part, seed) == Description(len(examples), examples.fields)
    for name, values in examples.fetch(np.zeros(1, np.int64), 0).items():
        field = examples.fields[name]
        assert (values.shape[1:], values.dtype) == (field.shape, np.dtype(field.dtype))
        assert field.holds_fractions == (values.dtype.kind == "f")
        assert field.holds_whole_numbers == (values.dtype.kind in "iu")
    return examples


def refused(source: Source, message: str, part: Part = "train") -> str:
    """What is said of data that will not do: the same, whether it is opened or described."""
    with pytest.raises(DataError, match=message) as when_opened:
        source.open(part, 0)
    with pytest.raises(DataError, match=message) as when_described:
        source.describe(part, 0)
    assert str(when_opened.value) == str(when_described.value)
    return str(when_opened.value)
