"""Arrays in files: what they become, and what is said of files that will not do."""

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from describing import opened, refused
from safetensors.numpy import save_file

from dtrain.data.arrays import Arrays
from dtrain.data.source import Description, Field
from dtrain.errors import DataError, RecipeErrors
from dtrain.spec.decode import decoded

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
    return opened(Arrays(path=path, **settings), part).fetch(np.array(indices), 0)


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
    assert len(opened(Arrays(path=path), "evaluate")) == 2
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
        (np.zeros((6, 3), np.longdouble), (3,), np.float64),
        (np.asfortranarray(np.zeros((6, 3))), (3,), np.float64),
        (np.zeros((6, 0)), (0,), np.float64),
        (np.zeros((6,), np.uint8), (), np.int64),
        (np.zeros((6, 7), np.uint16), (7,), np.int64),
        (np.zeros((6,), bool), (), np.int64),
        (np.zeros((6, 4, 5), np.uint8), (1, 4, 5), np.float32),
        (np.zeros((6, 4, 5, 3), np.uint8), (3, 4, 5), np.float32),
        (np.zeros((6, 4, 5, 3), np.int32), (4, 5, 3), np.int64),
        (np.zeros((6, 4, 5), bool), (4, 5), np.int64),
    ],
)
def test_fields_say_what_stored_arrays_become(tmp_path, stored, shape, becomes):
    examples = opened(Arrays(path=write(tmp_path / "data.npz", {"x": stored})))
    assert examples.fields["x"][:2] == (shape, np.dtype(becomes).name)
    batch = examples.fetch(np.arange(4), 0)
    assert batch["x"].shape == (4, *shape)
    assert batch["x"].dtype == becomes
    assert batch["x"].dtype.isnative


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (np.arange(6, dtype=np.uint8), 6),
        (np.array([0, 300, 7], ">u2"), 301),
        (np.array([0, 300, 7], ">i8"), 301),
        (np.array([0, 2**62], np.uint64), 2**62 + 1),
        (np.arange(1_200_000, dtype=np.int32), 1_200_000),
        (np.array([3, -1, 3], np.int8), None),
        (np.array([True, False]), None),
        (np.array([1.0, 2.0]), None),
        (np.array([[1], [2]]), None),
    ],
)
@pytest.mark.parametrize("name", ["data.npz", "data.safetensors"])
def test_classes_are_one_more_than_the_largest_label(tmp_path, name, labels, classes):
    if name == "data.safetensors":
        labels = labels.astype(labels.dtype.newbyteorder("="))
    examples = opened(Arrays(path=write(tmp_path / name, {"label": labels})))
    assert examples.fields["label"].classes == classes


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
    examples = opened(Arrays(path=FASHION))
    assert (len(examples), examples.fields["image"].shape) == (6000, (1, 28, 28))
    assert examples.fields["label"].classes == 10
    assert len(opened(Arrays(path=FASHION), "evaluate")) == 1000


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
        ({"x": np.zeros(3, [("a", "<f8"), ("b", "O")])}, r"field 'x' holds \[\('a', '<f8'\), .*not floats"),
        ({"x": np.array([None])}, "cannot be read .*without Python objects"),
        ({"x": np.zeros((2, 3, 32, 32), np.uint8)}, r"have 32 channels.*say data.channels = \"first\""),
    ],
)
def test_arrays_that_will_not_do_are_named(tmp_path, arrays, message):
    path = write(tmp_path / "data.npz", arrays)
    assert str(path) in refused(Arrays(path=path), message)


@pytest.mark.parametrize("name", ["data.npz", "data.safetensors"])
def test_broken_and_missing_files_are_named(tmp_path, name):
    path = tmp_path / name
    refused(Arrays(path=path), f"{name} does not exist")
    write(path, {"x": RANDOM.random((50, 50))})
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:3], b"", b"nonsense" * 20):
        path.write_bytes(broken)
        refused(Arrays(path=path), f"{name} cannot be read")


def npy(header, *, version=1, length=None):
    """The bytes of an .npy file with this header and no values."""
    text = str(header).encode()
    size = len(text) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + size.to_bytes(2 if version == 1 else 4, "little") + text


ROWS = {"descr": "<f4", "fortran_order": False, "shape": (3,)}


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (b"", "x is not an array in NumPy's format"),
        (b"\x93NUMPY", "x is not an array in NumPy's format"),
        (b"a text", "x is not an array in NumPy's format"),
        (npy(ROWS, version=9), "x is not an array in NumPy's format"),
        (npy(ROWS, version=2, length=2**32 - 1), "the header of x is 4294967295 bytes long"),
        (npy(ROWS, length=3), "the header of x is broken"),
        (npy("__import__('os').abort()"), "the header of x is broken"),
        (npy("(" * 5000), "the header of x is broken"),
        (npy({"descr": "<f4", "shape": (3,)}), "the header of x is broken"),
        (npy(ROWS | {"shape": (-3,)}), "the header of x is broken"),
        (npy(ROWS | {"shape": 3}), "the header of x is broken"),
        (npy(ROWS), "x has fewer values than its header says"),
        (npy(ROWS | {"shape": (3, 10**30)}), "x has fewer values than its header says"),
        (npy(ROWS | {"descr": "|O"}), "x holds Python objects"),
    ],
)
def test_arrays_with_a_broken_header_are_named(tmp_path, member, message):
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", member)
    refused(Arrays(path=path), rf"data.npz cannot be read \({message}\); write the file again")


FLOATS = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"x": FLOATS | {"dtype": "BF16", "shape": [6]}}, "x holds BF16, which NumPy lacks"),
        ({"x": FLOATS | {"shape": [4]}}, "what its header says of 'x' cannot be"),
        ({"x": FLOATS | {"shape": [3.0]}}, "what its header says of 'x' cannot be"),
        (
            {"x": FLOATS | {"shape": [2], "data_offsets": [0, 8]}},
            "its tensors have 8 bytes, and the file has 12 for them",
        ),
        ({"x": FLOATS | {"data_offsets": [4, 16]}}, "its header leaves gaps between tensors, or lays .*"),
        ({"x": {"dtype": "F32"}}, "what its header says of 'x' cannot be"),
        ([], "it holds no table"),
        (10**8 + 1, "its header is said to be 100000001 bytes long, and the file has 20"),
        (2**64 - 1, "its header is said to be 18446744073709551615 bytes long, and the file has 20"),
    ],
)
def test_tensors_with_a_broken_header_are_named(tmp_path, header, message):
    path = tmp_path / "data.safetensors"
    text = b"" if isinstance(header, int) else json.dumps(header).encode()
    length = header if isinstance(header, int) else len(text)
    path.write_bytes(length.to_bytes(8, "little") + text + bytes(12))
    refused(Arrays(path=path), rf"data.safetensors cannot be read \({message}\); write the file again")


def test_a_file_larger_than_memory_is_described_by_its_header(tmp_path):
    path = tmp_path / "data.safetensors"
    rows, size = 10**7, 4 * 1000 * 10**7  # 40 GB, none of it written
    text = json.dumps({"x": {"dtype": "F32", "shape": [rows, 1000], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
    assert Arrays(path=path).describe("train", 0) == Description(rows, {"x": Field((1000,), "float32")})


def test_arrays_of_the_other_part_may_be_anything(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, train_x=np.eye(3), test_x=np.array([None]))
    opened(Arrays(path=path))
    refused(Arrays(path=path), "test_x holds Python objects", part="evaluate")


def test_a_damaged_compressed_file_is_named(tmp_path):
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x=RANDOM.random((50, 50)))
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 255
    path.write_bytes(whole)
    with pytest.raises(DataError, match="cannot be read"):
        Arrays(path=path).open("train", 0)
    assert Arrays(path=path).describe("train", 0) == Description(50, {"x": Field((50,), "float64")})


def test_other_files_are_refused(tmp_path):
    (tmp_path / "data.pt").write_bytes(b"")
    refused(Arrays(path=tmp_path / "data.pt"), r"from an .npz or a .safetensors file, not .pt")


def test_the_table_is_checked():
    assert decoded(Arrays, {"path": "a.npz", "range": [0, 1]}).range == (0.0, 1.0)
    for wrong in ({"range": [1, 0]}, {"channels": "middle"}, {"size": 3}):
        with pytest.raises(RecipeErrors):
            decoded(Arrays, {"path": "a.npz"} | wrong)


def test_nothing_here_needs_torch_or_pillow(tmp_path):
    import subprocess

    program = (
        "import sys, numpy; from pathlib import Path; import dtrain.data.opening, dtrain.data.loader\n"
        "from dtrain.data.arrays import Arrays\n"
        f"Arrays(path=Path({str(FASHION)!r})).open('train', 0).fetch(numpy.arange(3), 0)\n"
        "sys.exit(bool({'torch', 'jax', 'accelerate', 'PIL'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=FASHION.parents[2])
