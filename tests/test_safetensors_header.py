"""Headers of safetensors files: what is read is what safetensors wrote, and no lie in one is believed."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dtrain.errors import CheckpointError
from dtrain.format.files import LARGEST
from dtrain.format.safetensors_header import BYTES, Stored, header_bytes, read_header

THREE = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
}


def file_of(path: Path, header: Any, values: int = 12, length: int | None = None) -> Path:
    """A file with this header, in JSON or as it stands, and so many bytes of values."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    said = len(text) if length is None else length
    path.write_bytes(said.to_bytes(8, "little") + text + bytes(values))
    return path


def test_the_header_says_what_safetensors_wrote(tmp_path: Path) -> None:
    tensors = {name: torch.ones(2, 3).to(dtype) for name, dtype in DTYPES.items()}
    tensors |= {"empty": torch.ones(0, 5), "single": torch.tensor(7.0)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"a": "b"})
    found = read_header(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    raw = (tmp_path / "x.safetensors").read_bytes()
    for name, tensor in tensors.items():
        stored = found[name]
        assert DTYPES.get(stored.dtype, torch.float32) == tensor.dtype
        assert stored.shape == tuple(tensor.shape)
        assert raw[stored.start : stored.start + stored.size] == bytes(
            tensor.reshape(-1).view(torch.uint8).numpy()
        )


def test_safetensors_reads_what_a_header_of_ours_begins(tmp_path: Path) -> None:
    wide, narrow = (
        torch.arange(6, dtype=torch.float64).reshape(2, 3),
        torch.tensor([1, 2, 3], dtype=torch.uint8),
    )
    stored = [Stored("narrow", "U8", (3,), 0, 3), Stored("wide", "F64", (2, 3), 0, 48)]
    header, ordered = header_bytes(stored, {"step": "8"})
    assert [each.name for each in ordered] == ["wide", "narrow"]
    assert len(header) % 8 == 0
    path = tmp_path / "x.safetensors"
    path.write_bytes(header + wide.numpy().tobytes() + narrow.numpy().tobytes())
    found = load_file(path)
    assert torch.equal(found["wide"], wide)
    assert torch.equal(found["narrow"], narrow)


DEEP = b"[" * 100_000 + b"]" * 100_000
ONCE = b'"x":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}'
TWICE = b"{" + ONCE + b"," + ONCE + b"}"
MANY = (
    b"{"
    + b",".join(b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % n for n in range(200_001))
    + b"}"
)
OTHER = {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ([], "it holds no table"),
        ({"x": THREE, "y": OTHER}, "gaps between tensors, or lays one over another"),
        ({"x": THREE | {"shape": [2], "data_offsets": [4, 12]}}, "gaps between tensors"),
        ({"x": THREE | {"data_offsets": [0, 2**60]}}, "what its header says of 'x' cannot be"),
        ({"x": THREE | {"shape": [2**58], "data_offsets": [0, 2**60]}}, "have 1152921504606846976 bytes"),
        ({"x": THREE | {"shape": [-3], "data_offsets": [0, -12]}}, "of 'x' cannot be"),
        ({"x": THREE | {"shape": [True, 3]}}, "of 'x' cannot be"),
        ({"x": THREE | {"shape": "3"}}, "of 'x' cannot be"),
        ({"x": THREE | {"more": 1}}, "of 'x' cannot be"),
        ({"x": THREE | {"data_offsets": [0, 12, 12]}}, "of 'x' cannot be"),
        ({"x": THREE | {"dtype": "F7"}}, "'x' holds 'F7', which is no type of numbers known here"),
        ({"x": None}, "of 'x' cannot be"),
        ({"x": THREE, "__metadata__": {"a": 1}}, "its metadata is not a table of texts"),
        ({"x": THREE | {"shape": [float("nan")]}}, "NaN is no JSON"),
        (
            b'{"x":{"dtype":"F32","shape":[1e999],"data_offsets":[0,12]}}',
            "1e999 is more than a number can be",
        ),
        (TWICE, "a key stands there twice"),
        (DEEP, "recursion"),
        (MANY, "more than 200,000 tensors"),
        (b"[[],[],[],[],[]," * 1_000_000, "more than 200,000 tensors"),
        (b"\xff\xfe{}", "cannot be read"),
        (b"", "cannot be read"),
        (b'{"x":', "cannot be read"),
        ({"x": THREE | {"shape": [int("9" * 4000)]}}, "of 'x' cannot be"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_lie_in_a_header_is_one_clear_error(tmp_path: Path, header: Any, message: str) -> None:
    path = file_of(tmp_path / "x.safetensors", header)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(caught.value).startswith(f"{path} cannot be read: ")
    assert "\n" not in str(caught.value)
    assert peak < 4 * path.stat().st_size + 100_000


@pytest.mark.parametrize("length", [2**60, 2**64 - 1, 21, 13])
def test_a_length_that_the_file_has_not_is_an_error(tmp_path: Path, length: int) -> None:
    path = file_of(tmp_path / "x.safetensors", {}, values=10, length=length)
    with pytest.raises(
        CheckpointError, match=f"its header is said to be {length} bytes long, and the file has 20"
    ):
        read_header(path)


def test_a_header_of_more_than_16_mebibytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((LARGEST + 1).to_bytes(8, "little"))
        file.truncate(2**40)
    with pytest.raises(CheckpointError, match=f"at most {LARGEST} would do"):
        read_header(path)


def test_a_file_cut_to_any_length_is_an_error(tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    save_file({"x": torch.ones(3), "y": torch.ones(2, dtype=torch.int64)}, whole)
    data = whole.read_bytes()
    for length in range(len(data)):
        path = tmp_path / "x.safetensors"
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            read_header(path)


def test_every_type_that_safetensors_writes_is_known() -> None:
    assert {"F64", "F32", "F16", "BF16", "C64", "BOOL", *DTYPES} <= BYTES.keys()
