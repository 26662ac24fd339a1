"""The pictures of a folder, decoded and cut out when they are fetched."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dtrain.data.conversion import scale
from dtrain.data.images import Images, Listing
from dtrain.data.source import Batch, Field, Filed, Part, Stretch
from dtrain.errors import DataError
from dtrain.spec.keys import generator


class ImageExamples(Filed):
    """Pictures of one part, decoded when they are fetched. `classes[label]` is a label's name."""

    def __init__(
        self,
        source: Images,
        part: Part,
        seed: int,
        *,
        listing: Listing,
        fields: Mapping[str, Field],
    ):
        numbers = {name: number for number, name in enumerate(listing.classes)}
        self.classes = tuple(listing.classes)
        self.range = source.range
        self.workers = source.workers
        self.fields = fields
        self._source, self._seed, self._root, self._names = source, seed, listing.root, listing.names
        self._augments = part == "train"
        self._labels = np.array([numbers[name.split("/", 1)[0]] for name in listing.names])
        self._size = source.height_and_width

    def __len__(self) -> int:
        return len(self._names)

    def files(self) -> list[Stretch]:
        paths = [self._root / name for name in self._names]
        try:
            sizes = [path.stat().st_size for path in paths]
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read ({error})") from error
        return [
            Stretch(name, path, 0, size) for name, path, size in zip(self._names, paths, sizes, strict=True)
        ]

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


def _decode(path: Path, size: tuple[int, int], channels: int) -> Image.Image:
    """The picture upright, grey or RGB, scaled so that it just covers (height, width)."""
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


def _padded(picture: Image.Image, padding: int) -> Image.Image:
    return ImageOps.expand(picture, padding, fill=0)


def _cropped(picture: Image.Image, size: tuple[int, int], *, across: float, down: float) -> Image.Image:
    """Cut (height, width) out at a fraction, 0 to 1, of the room that there is."""
    height, width = size
    left = int(across * (picture.width - width + 1))
    top = int(down * (picture.height - height + 1))
    return picture.crop((left, top, left + width, top + height))
