"""Arrays in files: what they become, and what is said of files that will not do."""

import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from safetensors.numpy import save_file

from dtrain.data.arrays import Arrays
from dtrain.errors import DataError

FASHION = Path(__file__).parents[1] / "recipes/data/fashion-mnist-7k.npz"
RANDOM = np.random.Generator(np.random.PCG64(0))
PICTURES = RANDOM.integers(0, 256, (6, 4, 5), np.uint8)


def write(path, arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, path)
    return path


def fetch(path, indices=(0, 1, 2), *, part="train", **settings):
    return Arrays(path=path, **settings).open(part, 0).fetch(np.array(indices), 0)


@pytest.mark.parametrize("name", ["data.npz", "data.safetensors"])
def test_both_formats_hold_the_same_examples(tmp_path, name):
    path = write(
        tmp_path / name,
        {
            "train_image": PICTURES,
            "train_label": np.arange(6, dtype=np.uint8),
            "test_image": PICTURES[:2] // 2,
            "test_label": np.array([4, 5], np.int32),
            "names": np.arange(3),
        },
    )
    batch = fetch(path, [5, 0, 0])
    assert list(batch) == ["image", "label"]
    np.testing.assert_allclose(batch["image"][:, 0], PICTURES[[5, 0, 0]] / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(batch["label"], [5, 0, 0])
    assert len(Arrays(path=path).open("evaluate", 0)) == 2
    np.testing.assert_array_equal(fetch(path, [1], part="evaluate")["label"], [5])


def test_without_prefixes_every_array_serves_both_parts(tmp_path):
    path = write(tmp_path / "data.npz", {"x": np.eye(3), "y": np.arange(3)})
    train, evaluate = fetch(path), fetch(path, part="evaluate")
    assert train.keys() == evaluate.keys() == {"x", "y"}
    np.testing.assert_array_equal(train["x"], np.eye(3))


@pytest.mark.parametrize(
    ("stored", "shape", "becomes"),
    [
        (np.zeros((6, 3), np.float32), (3,), np.float32),
        (np.zeros((6, 3), np.float64), (3,), np.float64),
        (np.zeros((6, 3), np.float16), (3,), np.float32),
        (np.zeros((6, 3), ">f4"), (3,), np.float32),
        (np.zeros((6,), np.uint8), (), np.int64),
        (np.zeros((6, 7), np.uint16), (7,), np.int64),
        (np.zeros((6,), bool), (), np.int64),
        (np.zeros((6, 4, 5), np.uint8), (1, 4, 5), np.float32),
        (np.zeros((6, 4, 5, 3), np.uint8), (3, 4, 5), np.float32),
        (np.zeros((6, 4, 5, 3), np.int32), (4, 5, 3), np.int64),
    ],
)
def test_fields_say_what_stored_arrays_become(tmp_path, stored, shape, becomes):
    examples = Arrays(path=write(tmp_path / "data.npz", {"x": stored})).open("train", 0)
    assert examples.fields["x"][:2] == (shape, np.dtype(becomes))
    batch = examples.fetch(np.arange(4), 0)
    assert batch["x"].shape == (4, *shape)
    assert batch["x"].dtype == becomes
    assert batch["x"].dtype.isnative


def test_channels_last_and_first_are_the_same_pictures(tmp_path):
    pictures = RANDOM.integers(0, 256, (6, 8, 9, 3), np.uint8)
    last = fetch(write(tmp_path / "last.npz", {"image": pictures}))
    first = fetch(write(tmp_path / "first.npz", {"image": pictures.transpose(0, 3, 1, 2)}), channels="first")
    np.testing.assert_array_equal(last["image"], first["image"])


@pytest.mark.parametrize("ends", [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0), (-0.5, 0.5)])
def test_black_and_white_are_the_ends_of_the_range(tmp_path, ends):
    path = write(tmp_path / "data.npz", {"image": np.array([[[0, 255]]], np.uint8)})
    np.testing.assert_array_equal(fetch(path, [0], range=ends)["image"].ravel(), np.array(ends, np.float32))


def test_the_pictures_that_come_with_dtrain_open():
    examples = Arrays(path=FASHION).open("train", 0)
    assert (len(examples), examples.fields["image"].shape) == (6000, (1, 28, 28))
    assert len(Arrays(path=FASHION).open("evaluate", 0)) == 1000


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "holds no array for train; name one train_image"),
        ({"test_x": np.zeros(3)}, "holds no array for train; name one train_image"),
        ({"x": np.zeros(3), "y": np.zeros(4)}, "equally many rows.*x has 3, y has 4"),
        ({"x": np.zeros(0)}, "x has 0"),
        ({"x": np.zeros(())}, "x has 0"),
        ({"x": np.zeros(3, complex)}, "field 'x' holds complex128, not floats"),
        ({"x": np.array(["a"])}, "field 'x' holds <U1, not floats"),
        ({"x": np.array([None])}, "cannot be read .*without Python objects"),
        ({"x": np.zeros((2, 3, 32, 32), np.uint8)}, r"have 32 channels.*say data.channels = \"first\""),
    ],
)
def test_arrays_that_will_not_do_are_named(tmp_path, arrays, message):
    path = write(tmp_path / "data.npz", arrays)
    with pytest.raises(DataError, match=message) as caught:
        Arrays(path=path).open("train", 0)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["data.npz", "data.safetensors"])
def test_broken_and_missing_files_are_named(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(DataError, match=f"{name} does not exist"):
        Arrays(path=path).open("train", 0)
    write(path, {"x": RANDOM.random((50, 50))})
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:3], b"", b"nonsense" * 20):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=rf"{name} cannot be read"):
            Arrays(path=path).open("train", 0)


def test_a_damaged_compressed_file_is_named(tmp_path):
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x=RANDOM.random((50, 50)))
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 255
    path.write_bytes(whole)
    with pytest.raises(DataError, match="cannot be read"):
        Arrays(path=path).open("train", 0)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "data.pt").write_bytes(b"")
    with pytest.raises(DataError, match=r"from an .npz or a .safetensors file, not .pt"):
        Arrays(path=tmp_path / "data.pt").open("train", 0)


def test_the_table_is_checked():
    adapter = TypeAdapter(Arrays)
    assert adapter.validate_python({"path": "a.npz", "range": [0, 1]}).range == (0.0, 1.0)
    for wrong in ({"range": [1, 0]}, {"channels": "middle"}, {"size": 3}):
        with pytest.raises(ValidationError):
            adapter.validate_python({"path": "a.npz"} | wrong)


def test_nothing_here_needs_torch_or_pillow(tmp_path):
    import subprocess

    program = (
        "import sys, numpy; from pathlib import Path; import dtrain.data.opening, dtrain.data.loader\n"
        "from dtrain.data.arrays import Arrays\n"
        f"Arrays(path=Path({str(FASHION)!r})).open('train', 0).fetch(numpy.arange(3), 0)\n"
        "sys.exit(bool({'torch', 'jax', 'accelerate', 'PIL'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=FASHION.parents[2])
