"""Examples from folders of pictures, one folder a class, decoded by worker processes."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from dtrain.data.source import Description, Field, Part, Source
from dtrain.data.values import Range
from dtrain.errors import DataError
from dtrain.spec.keys import seed_of
from dtrain.spec.table import Fraction, Natural, Positive, kind

if TYPE_CHECKING:
    from dtrain.data.image_examples import ImageExamples

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class Listing(NamedTuple):
    """The pictures of one part."""

    root: Path  # what names are relative to
    names: list[str]  # "class/file"
    classes: list[str]  # all of them, by label


@kind(Source, "images")
class Images(Source):
    """A folder of class folders of pictures: fields `image` (C, H, W) and `label` ().

    Sub-folders `train/` and `test/`, each with class folders, are the two parts. Without them
    a picture belongs to evaluation or to training by a hash of its name alone, so that new
    pictures move none of the old ones, and every seed holds out the same. Classes are numbered
    by name. Cropping at random and flipping happen in training only.
    """

    path: Path  # the folder
    size: Positive | tuple[Positive, Positive]  # side of a square, or (height, width)
    channels: Literal[1, 3] = 3  # 1 is grey
    range: Range = (-1.0, 1.0)  # what black and white become
    crop: Literal["center", "random"] = "center"  # what is cut out once the shorter side fits
    padding: Natural = 0  # black pixels on each side before a random crop
    flip: bool = False  # mirror left and right, half of the time
    evaluate_fraction: Fraction = 0.1  # share of each class held out, on average
    workers: Natural = 2  # processes that read ahead; 0 reads in the trainer itself

    def __post_init__(self) -> None:
        if self.padding and self.crop == "center":
            raise ValueError('padding only makes sense with crop = "random"')

    @property
    def height_and_width(self) -> tuple[int, int]:
        """Of every picture once it is cut out."""
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)

    def open(self, part: Part, seed: int) -> "ImageExamples":
        from dtrain.data.image_examples import ImageExamples

        listing = _find(self.path, part, self.evaluate_fraction)
        return ImageExamples(self, part, seed, listing=listing, fields=self._fields(listing))

    def describe(self, part: Part, seed: int) -> Description:
        listing = _find(self.path, part, self.evaluate_fraction)
        return Description(len(listing.names), self._fields(listing))

    def _fields(self, listing: Listing) -> dict[str, Field]:
        return {
            "image": Field((self.channels, *self.height_and_width), "float32", range=self.range),
            "label": Field((), "int64", len(listing.classes)),
        }


def _find(path: Path, part: Part, evaluate_fraction: float) -> Listing:
    if not path.is_dir():
        raise DataError(f"{path} is not a folder; set data.path to a folder with one folder per class")
    parts = {"train": path / "train", "evaluate": path / "test"}
    if not parts["train"].is_dir():
        classes, names = _list(path)
        held_out = {name for name in names if _hash(name) < evaluate_fraction}
        names = [name for name in names if (name in held_out) == (part == "evaluate")]
        if not names:
            raise DataError(
                f"{path}: an evaluate_fraction of {evaluate_fraction} leaves no picture for {part}"
            )
        return Listing(path, names, classes)
    if not parts["evaluate"].is_dir():
        raise DataError(f"{path} has a folder train/ but no test/; give evaluation's pictures that name")
    classes, names = _list(parts["train"])
    if part == "evaluate":
        found, names = _list(parts["evaluate"])
        if unknown := sorted(set(found) - set(classes)):
            raise DataError(f"{parts['evaluate']} has classes that train/ lacks: {', '.join(unknown)}")
    return Listing(parts[part], names, classes)


def _hash(name: str) -> float:
    """A fraction from 0 up to 1 that belongs to this name."""
    return seed_of("evaluate", name) / 2**63


def _list(root: Path) -> tuple[list[str], list[str]]:
    """Class folders, and the pictures at any depth in them, both by name."""
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[0] != ".")
    names: list[str] = []
    for label in classes:
        count = len(names)
        for folder, _, files in os.walk(root / label, followlinks=True):
            inside = Path(folder).relative_to(root)
            pictures = [file for file in files if file.lower().endswith(SUFFIXES) and file[0] != "."]
            names += [(inside / file).as_posix() for file in pictures]
        if len(names) == count:
            raise DataError(f"{root / label} holds no picture ({' '.join(SUFFIXES)}); fill it or remove it")
    if not names:
        raise DataError(f"{root} holds no class folders with pictures in them")
    return classes, sorted(names)
