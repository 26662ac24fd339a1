"""Examples from folders of pictures, one folder a class, decoded by worker processes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from dtrain.data.source import Batch, Field, Part, Source
from dtrain.data.values import Range, scale
from dtrain.errors import DataError
from dtrain.spec.keys import generator, seed_of
from dtrain.spec.table import Fraction, Natural, Positive, kind

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@kind(Source, "images")
class Images(Source):
    """A folder of class folders of pictures: fields `image` (C, H, W) and `label` ().

    Sub-folders `train/` and `test/`, each with class folders, are the two parts. Without them
    a picture belongs to evaluation or to training by a hash of its name alone, so that new
    pictures move none of the old ones, and every seed holds out the same. Classes are numbered
    by name. Cropping at random and flipping happen in training only.
    """

    path: Path
    size: Positive | tuple[Positive, Positive]  # side of a square, or (height, width)
    channels: Literal[1, 3] = 3  # 1 is grey
    range: Range = (-1.0, 1.0)  # what black and white become
    crop: Literal["center", "random"] = "center"  # what is cut out once the shorter side fits
    padding: Natural = 0  # black pixels on each side before a random crop
    flip: bool = False  # mirror left and right, half of the time
    evaluate_fraction: Fraction = 0.1  # share of each class held out, on average
    workers: Natural = 2

    def __post_init__(self) -> None:
        if self.padding and self.crop == "center":
            raise ValueError('padding only makes sense with crop = "random"')

    def open(self, part: Part, seed: int) -> "ImageExamples":
        root, names, classes = _find(self.path, part, self.evaluate_fraction)
        return ImageExamples(self, part, seed, root=root, names=names, classes=classes)


class ImageExamples:
    """Pictures of one part, decoded when they are fetched. `classes[label]` is a label's name."""

    def __init__(
        self,
        source: Images,
        part: Part,
        seed: int,
        *,
        root: Path,
        names: Sequence[str],
        classes: Sequence[str],
    ):
        numbers = {name: number for number, name in enumerate(classes)}
        self.classes = tuple(classes)
        self.range = source.range
        self.workers = source.workers
        self._source, self._seed, self._root, self._names = source, seed, root, names
        self._augments = part == "train"
        self._labels = np.array([numbers[name.split("/", 1)[0]] for name in names])
        self._size = source.size if isinstance(source.size, tuple) else (source.size, source.size)
        self.fields = {
            "image": Field((source.channels, *self._size), np.dtype(np.float32)),
            "label": Field((), np.dtype(np.int64), len(classes)),
        }

    def __len__(self) -> int:
        return len(self._names)

    def fetch(self, indices: np.ndarray, epoch: int) -> Batch:
        pixels = np.empty((len(indices), *self._size, self._source.channels), np.uint8)
        for row, index in enumerate(indices.tolist()):
            pixels[row] = self._picture(index, epoch)
        return {
            "image": scale(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), self._source.range),
            "label": self._labels[indices],
        }

    def _picture(self, index: int, epoch: int) -> np.ndarray:
        """One picture of the right size. (H, W, C) uint8"""
        path = self._root / self._names[index]
        try:
            picture = _decode(path, self._size, self._source.channels)
        except Exception as error:  # Pillow's decoders raise whatever broken bytes lead them to
            raise DataError(f"{path} cannot be read as a picture ({error}); mend or remove it") from error
        across, down, mirrored = 0.5, 0.5, False
        if self._augments:
            chance = generator(self._seed, "example", epoch, index).random(3)
            mirrored = self._source.flip and chance[2] < 0.5
            if self._source.crop == "random":
                across, down = chance[:2]
                picture = _padded(picture, self._source.padding)
        pixels = np.asarray(_cropped(picture, self._size, across=across, down=down))
        pixels = pixels[:, ::-1] if mirrored else pixels
        return pixels.reshape(*self._size, self._source.channels)


def _decode(path: Path, size: tuple[int, int], channels: int) -> "Image.Image":
    """The picture upright, grey or RGB, scaled so that it just covers (height, width)."""
    from PIL import Image, ImageOps

    mode = "L" if channels == 1 else "RGB"
    with Image.open(path) as opened:
        if opened.mode.startswith(("I", "F")):
            raise ValueError(f"its pixels are not 8-bit but {opened.mode}")
        opened.draft(mode, (max(size), max(size)))  # a JPEG is decoded no larger than needed
        picture = ImageOps.exif_transpose(opened)
        if picture.mode == "P" and "transparency" in picture.info:
            picture = picture.convert("RGBA")  # Pillow warns of the direct way
        picture = picture.convert(mode)
    height, width = size
    ratio = max(height / picture.height, width / picture.width)
    covering = (max(width, round(picture.width * ratio)), max(height, round(picture.height * ratio)))
    return picture.resize(covering, Image.Resampling.BICUBIC)


def _padded(picture: "Image.Image", padding: int) -> "Image.Image":
    from PIL import ImageOps

    return ImageOps.expand(picture, padding, fill=0)


def _cropped(picture: "Image.Image", size: tuple[int, int], *, across: float, down: float) -> "Image.Image":
    """Cut (height, width) out at a fraction, 0 to 1, of the room that there is."""
    height, width = size
    left = int(across * (picture.width - width + 1))
    top = int(down * (picture.height - height + 1))
    return picture.crop((left, top, left + width, top + height))


def _find(path: Path, part: Part, evaluate_fraction: float) -> tuple[Path, list[str], list[str]]:
    """The folder that names are relative to, names `class/file` of the part, and all classes."""
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
        return path, names, classes
    if not parts["evaluate"].is_dir():
        raise DataError(f"{path} has a folder train/ but no test/; give evaluation's pictures that name")
    classes, names = _list(parts["train"])
    if part == "evaluate":
        found, names = _list(parts["evaluate"])
        if unknown := sorted(set(found) - set(classes)):
            raise DataError(f"{parts['evaluate']} has classes that train/ lacks: {', '.join(unknown)}")
    return parts[part], names, classes


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
