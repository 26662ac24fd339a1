"""A checkpoint's files: their names, hashes, and the manifest that makes it whole."""

import json
import os
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from dtrain.errors import CheckpointError

FORMAT = 1
PARTS = ("models", "optimizers", "averages")
RECIPE, STATE, MANIFEST = "recipe.toml", "state.json", "manifest.json"


def folder_name(step: int) -> str:
    """`step-00002000`: names sort as steps do."""
    return f"step-{step:08d}"


def shard_name(part: str, number: int, count: int) -> str:
    """`models-00001-of-00002.safetensors`, numbered from 1."""
    return f"{part}-{number:05d}-of-{count:05d}.safetensors"


def hash_of(data: bytes | memoryview) -> str:
    """The hash of bytes that a manifest records."""
    return blake2b(data, digest_size=16).hexdigest()


def hash_of_file(path: Path) -> str:
    """The same, of a whole file, read piece by piece."""
    state = blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            state.update(piece)
    return state.hexdigest()


def canonical(value: Any) -> bytes:
    """JSON with one spelling, so that it can be hashed."""
    return json.dumps(value, sort_keys=True, allow_nan=False, indent=1).encode()


def sealed(manifest: Mapping[str, Any]) -> bytes:
    """A manifest's bytes with its own checksum inside."""
    return canonical({**manifest, "checksum": hash_of(canonical(manifest))})


def unseal(path: Path) -> dict[str, Any]:
    """Read a manifest. Raises CheckpointError if it is missing, altered or of a later format."""
    try:
        manifest = json.loads(path.read_bytes())
        checksum = manifest.pop("checksum")
        whole = checksum == hash_of(canonical(manifest))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is not a checkpoint: it has no {MANIFEST}") from None
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not whole:
        raise CheckpointError(f"{path} was altered: its checksum differs")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {manifest.get('format')}; this dtrain reads format {FORMAT}"
        )
    return dict(manifest)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
