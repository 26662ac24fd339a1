"""Writes safetensors files from tensors in memory; they are hashed and reach the disk meanwhile."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

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
EARLY = 1 << 27  # bytes with which the disk begins while others are written


class Written(NamedTuple):
    """What a manifest says of a file."""

    size: int  # of the file
    values: int  # bytes of its tensors
    header: str  # hash
    tensors: dict[str, str]  # hashes by name


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Written:
    """Write tensors to a file and wait until it is on the disk.

    Raises CheckpointError of a tensor that the format cannot hold, OSError where the file cannot be written.
    """
    try:
        header, ordered = header_bytes([_stored(name, tensor) for name, tensor in tensors.items()], {})
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    with (
        path.open("wb", buffering=1 << 20) as file,
        ThreadPoolExecutor(1, "dtrain-hash") as hashing,
        ThreadPoolExecutor(1, "dtrain-sync") as syncing,
    ):
        file.write(header)
        hashes = {}
        synced, begun = None, 0
        for each in ordered:
            values = bytes_of(tensors[each.name])
            hashes[each.name] = hashing.submit(hash_of, values)
            file.write(values)
            if file.tell() - begun > EARLY and (synced is None or synced.done()):
                synced, begun = syncing.submit(os.fsync, file.fileno()), file.tell()
        file.flush()
        if synced is not None:
            synced.result()
        os.fsync(file.fileno())
        size = file.tell()
        digests = {name: found.result() for name, found in hashes.items()}
    return Written(size, size - len(header), hash_of(header), digests)


def bytes_of(tensor: Tensor) -> memoryview:
    """The values of a tensor on the CPU as a file has them."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _stored(name: str, tensor: Tensor) -> Stored:
    if tensor.dtype not in DTYPES:
        raise ValueError(f"{name} is of {tensor.dtype}, which safetensors cannot hold")
    return Stored(name, DTYPES[tensor.dtype], tuple(tensor.shape), 0, tensor.nbytes)
