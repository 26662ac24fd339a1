"""The items of a map-style dataset, as `dataset.Reading` says."""

import random
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dtrain.data.conversion import channels_first, field_like, finish, name_of
from dtrain.data.dataset import Reading
from dtrain.data.source import Batch, Field, Part
from dtrain.data.values import check_numbers
from dtrain.errors import DataError
from dtrain.spec.keys import seed_of


class DatasetExamples:
    """Items of a dataset, converted and stacked.

    Before each item the generators that a dataset may draw from (of `random`, NumPy and torch)
    are seeded by (seed, epoch, index), so that what it draws does not depend on who asks when.
    """

    def __init__(self, dataset: Any, reading: Reading, *, name: str, part: Part, seed: int):
        self._dataset, self._name, self._part, self._seed = dataset, name, part, seed
        self._names, self._channels, self.range = reading.fields, reading.channels, reading.range
        self.workers = reading.workers
        if not len(self):
            raise DataError(f"{name} has no examples for {part}")
        stored = self._stored(np.zeros(1, np.int64), 0)
        self.fields: Mapping[str, Field] = {
            name: field_like(finish(values, self.range), values, self.range)
            for name, values in stored.items()
        }

    def __len__(self) -> int:
        return len(self._dataset)

    def fetch(self, indices: np.ndarray, epoch: int) -> Batch:
        stored = self._stored(indices, epoch)
        return {name: finish(values, self.range) for name, values in stored.items()}

    def _stored(self, indices: np.ndarray, epoch: int) -> Batch:
        numbers = indices.tolist()
        items = [self._item(index, epoch) for index in numbers]
        names = items[0].keys()
        for index, item in zip(numbers, items, strict=True):
            if item.keys() != names:
                raise DataError(
                    f"{self._name}: examples {numbers[0]} and {index} have different fields: "
                    f"{', '.join(names)} and {', '.join(item)}"
                )
        return {name: self._stacked(name, numbers, [item[name] for item in items]) for name in names}

    def _stacked(self, name: str, numbers: Sequence[int], values: Sequence[np.ndarray]) -> np.ndarray:
        for index, value in zip(numbers, values, strict=True):
            if value.shape != values[0].shape:
                raise DataError(
                    f"{self._name}: field {name!r} has shape {values[0].shape} in example {numbers[0]} and "
                    f"{value.shape} in example {index}; crop or pad them in the dataset to one shape"
                )
        return np.stack(values)

    def _item(self, index: int, epoch: int) -> dict[str, np.ndarray]:
        _seed_globals(seed_of(self._seed, "example", epoch, index))
        try:
            item = self._dataset[index]
        except Exception as error:  # the dataset is the user's code
            problem = f"{type(error).__name__}: {error}"
            raise DataError(f"{self._name} failed at example {index} of {self._part}: {problem}") from error
        try:
            return {name: self._array(name, value) for name, value in self._named(item).items()}
        except (DataError, TypeError, ValueError) as error:  # the latter two: NumPy cannot take the value
            raise DataError(f"{self._name}, example {index} of {self._part}: {error}") from None

    def _named(self, item: Any) -> Mapping[str, Any]:
        if isinstance(item, Mapping):
            return item
        values = item if isinstance(item, tuple | list) else (item,)
        if len(values) != len(self._names):
            raise DataError(
                f"an item has {len(values)} values, data.examples.fields has {len(self._names)} names "
                f"({', '.join(self._names)}); give one name for each value"
            )
        return dict(zip(self._names, values, strict=True))

    def _array(self, name: str, value: Any) -> np.ndarray:
        """An item's value, pictures channels first."""
        channels = self._channels
        torch, pillow = sys.modules.get("torch"), sys.modules.get("PIL.Image")
        if torch is not None and isinstance(value, torch.Tensor):
            value = value.detach().cpu()
            array: np.ndarray = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        elif pillow is not None and isinstance(value, pillow.Image):
            if value.mode not in ("L", "RGB"):
                raise DataError(f"field {name!r} is a picture of mode {value.mode}; convert it to L or RGB")
            array, channels = np.asarray(value), "last"
        elif isinstance(value, float):
            array = np.asarray(value, np.float32)  # Python's float does not say what precision is meant
        else:
            array = np.asarray(value)
        check_numbers(name, name_of(array.dtype))
        return channels_first(name, array, array.ndim, channels)


def _seed_globals(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if torch := sys.modules.get("torch"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes 350 times as long
