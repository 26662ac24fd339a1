"""Writes safetensors files from tensors in memory; they are hashed meanwhile."""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dtrain.checkpoint.direct import DirectFile, Disk
from dtrain.errors import CheckpointError
from dtrain.format.files import hash_of
from dtrain.format.safetensors_header import Stored, header_bytes

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Written(NamedTuple):
    """What a manifest says of a file."""

    size: int  # of the file
    values: int  # bytes of its tensors
    header: str  # hash
    tensors: dict[str, str]  # hashes by name


def write_files(files: Mapping[Path, Mapping[str, Tensor]]) -> dict[Path, Written]:
    """Write files of tensors one after the other, and wait until all are on the disk.

    Raises CheckpointError of a tensor that the format cannot hold, OSError where a file cannot be written.
    """
    with ThreadPoolExecutor(1, "dtrain-hash") as hashing, Disk() as disk:
        begun = {path: _write(path, tensors, hashing, disk) for path, tensors in files.items()}
        return {path: end() for path, end in begun.items()}


def _write(path: Path, tensors: Mapping[str, Tensor], hashing: Executor, disk: Disk) -> Callable[[], Written]:
    """Write a file; what waits until it is hashed, on the disk, and closed."""
    try:
        header, ordered = header_bytes([_stored(name, tensor) for name, tensor in tensors.items()], {})
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    hashes: dict[str, Future[str]] = {}
    file = DirectFile(path, disk)
    try:
        file.write(header)
        for each in ordered:
            values = bytes_of(tensors[each.name])
            hashes[each.name] = hashing.submit(hash_of, values)
            file.write(values)
    finally:
        closed = file.end()

    def end() -> Written:
        closed.result()
        digests = {name: found.result() for name, found in hashes.items()}
        return Written(file.size, file.size - len(header), hash_of(header), digests)

    return end


def bytes_of(tensor: Tensor) -> memoryview:
    """The values of a tensor on the CPU as a file has them."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _stored(name: str, tensor: Tensor) -> Stored:
    if tensor.dtype not in DTYPES:
        raise ValueError(f"{name} is of {tensor.dtype}, which safetensors cannot hold")
    return Stored(name, DTYPES[tensor.dtype], tuple(tensor.shape), 0, tensor.nbytes)
