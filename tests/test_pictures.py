from pathlib import Path

import numpy as np
from PIL import Image

from dtrain.pictures import save_grid


def read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def tile(grid: np.ndarray, row: int, column: int, size: int) -> np.ndarray:
    top, left = row * (size + 1) + 1, column * (size + 1) + 1
    return grid[top : top + size, left : left + size]


def test_low_is_black_and_high_is_white_and_the_rest_lies_between(tmp_path):
    values = np.array([[[-1.0, 1.0], [0.0, -3.0]], [[np.nan, np.inf], [-np.inf, 0.5]]])
    save_grid(values, tmp_path / "grid.png", low=-1, high=1)
    grid = read(tmp_path / "grid.png")
    size = (grid.shape[1] - 3) // 2
    corners = [0, size - 1]
    assert tile(grid, 0, 0, size)[np.ix_(corners, corners)].tolist() == [[0, 255], [128, 0]]
    assert tile(grid, 0, 1, size)[np.ix_(corners, corners)].tolist() == [[0, 255], [0, 191]]


def test_pictures_are_enlarged_by_whole_pixels_to_at_least_600_wide(tmp_path):
    pictures = np.random.default_rng(0).random((10, 28, 28))
    save_grid(pictures, tmp_path / "grid.png", low=0, high=1)
    grid = read(tmp_path / "grid.png")
    enlarge = (grid.shape[1] - 5) // 4 // 28  # 4 columns of the 10
    size = 28 * enlarge
    assert grid.shape == (3 * (size + 1) + 1, 4 * (size + 1) + 1)
    assert 600 <= grid.shape[1] < 600 + 4 * 28
    expected = np.rint(pictures[6] * 255).repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    assert (tile(grid, 1, 2, size) == expected).all()
    assert (tile(grid, 2, 3, size) == 128).all()  # a place without a picture


def test_columns_can_be_chosen(tmp_path):
    save_grid(np.zeros((6, 1, 700, 10)), tmp_path / "grid.png", low=0, high=1, columns=6)
    height, width = read(tmp_path / "grid.png").shape
    assert (height - 2) % 700 == 0
    assert (width - 7) % 60 == 0


def test_two_channels_show_the_first_and_four_the_first_three(tmp_path):
    pictures = np.arange(4).reshape(1, 4, 1, 1) / 4 * np.ones((1, 4, 700, 700))
    for channels, shown in {1: [0], 2: [0], 3: [0, 64, 128], 4: [0, 64, 128]}.items():
        save_grid(pictures[:, :channels], tmp_path / "grid.png", low=0, high=1)
        assert np.atleast_1d(read(tmp_path / "grid.png")[1, 1]).tolist() == shown


def test_only_the_picture_is_left_in_the_folder(tmp_path):
    save_grid(np.zeros((1, 4, 4)), tmp_path / "grid.png", low=0, high=1)
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
