"""Grids of pictures as PNG files."""

import os
from math import ceil, sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

GRID_WIDTH = 600  # pixels: small pictures are enlarged until the grid is about this wide


def save_grid(
    pictures: NDArray[np.floating], path: Path, *, low: float, high: float, columns: int | None = None
) -> None:
    """Write `pictures`, (N, H, W) or (N, C, H, W), as one near-square PNG; `low` is black, `high` white.

    Values outside are clipped, NaN counts as `low`. One channel is grey, three are red, green
    and blue; of two channels the first is shown, of more than three the first three. The file
    appears whole or not at all.
    """
    from PIL import Image

    count = len(pictures)
    columns = min(columns or ceil(sqrt(count)), count)
    tiles = _to_bytes(pictures, low, high)  # (N, H, W, C)
    enlarge = ceil(GRID_WIDTH / (columns * (tiles.shape[2] + 1) + 1))
    grid = _tile(tiles.repeat(enlarge, axis=1).repeat(enlarge, axis=2), columns)

    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        Image.fromarray(grid.squeeze(2) if grid.shape[2] == 1 else grid).save(temporary, format="png")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _to_bytes(pictures: NDArray[np.floating], low: float, high: float) -> NDArray[np.uint8]:
    """(N, H, W, 1 or 3), 0 to 255."""
    values = np.asarray(pictures, dtype=np.float64)
    if values.ndim == 3:
        values = values[:, None]
    values = values[:, : 3 if values.shape[1] >= 3 else 1].transpose(0, 2, 3, 1)
    shades = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) / (high - low) * 255
    rounded: NDArray[np.uint8] = np.rint(shades.clip(0, 255)).astype(np.uint8)
    return rounded


def _tile(tiles: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Lay (N, H, W, C) out in rows, one grey pixel around each tile; places left over stay grey."""
    count, height, width, channels = tiles.shape
    rows = ceil(count / columns)
    grid = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 128, dtype=np.uint8)
    for place, tile in enumerate(tiles):
        top, left = place // columns * (height + 1) + 1, place % columns * (width + 1) + 1
        grid[top : top + height, left : left + width] = tile
    return grid
