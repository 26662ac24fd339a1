"""Data that a user brings along: datasets of PyTorch's kind, and a source that says nothing of its files."""

from pathlib import Path

import numpy as np

from dtrain.data.source import Field, Part, Source
from dtrain.spec.table import table


class Numbers:
    """Pictures and labels out of a file; with noise, as others are drawn for each (seed, epoch, index)."""

    def __init__(self, path: str, noise: float = 0.0):
        with np.load(path) as file:
            self.images, self.labels = file["image"], file["label"]
        self.noise = noise

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        drawn = np.random.normal(0, 1, self.images[index].shape)
        return (self.images[index] + self.noise * drawn).astype(np.float32), int(self.labels[index])


class Unsteady(Numbers):
    """Against the contract: other numbers each time, though it is the same example."""

    random = np.random.default_rng()

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.random.random((1, 8, 8)).astype(np.float32), int(self.labels[index])


class Rows:
    """Examples as a source gives them."""

    workers, range = 0, (-1.0, 1.0)

    def __init__(self, path: Path):
        with np.load(path) as file:
            self.stored = {"image": file["image"].astype(np.float32), "label": file["label"]}
        self.fields = {"image": Field((1, 8, 8), "float32"), "label": Field((), "int64", 3)}
        self.files = [path]  # its own affair

    def __len__(self) -> int:
        return len(self.stored["label"])

    def fetch(self, indices: np.ndarray, epoch: int) -> dict[str, np.ndarray]:
        return {name: values[indices] for name, values in self.stored.items()}


@table
class Own(Source):
    """A source of one's own."""

    path: Path

    def open(self, part: Part, seed: int) -> Rows:
        return Rows(self.path)
