"""Whether files are those that a manifest lists: every byte is a header's, a tensor's, or a small file's."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3

from dtrain.errors import CheckpointError
from dtrain.format.files import MANIFEST, PARTS, hash_of
from dtrain.format.safetensors_header import Stored, read_header, read_raw

PIECE = 1 << 22  # bytes read at once


def digest_of(file: Path, form: int) -> str:
    """What a manifest records of a file: of one of tensors the hash of its header, as each has its own.

    In format 1 that of the whole file. Raises CheckpointError if it cannot be read.
    """
    try:
        with file.open("rb") as opened:
            if form == 1:
                return hash_of(opened.read(), form)
            if holds_tensors(file.name):
                return hash_of(read_raw(opened))
            state = blake3()
            while piece := opened.read(PIECE):
                state.update(piece)
            return state.hexdigest(length=16)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None


def altered(path: Path, manifest: Mapping[str, Any], share: tuple[int, int] = (0, 1)) -> Iterator[str]:
    """What is wrong with the tensors of a checkpoint, in words; nothing if they are whole.

    Files and headers were checked before. `share` is of several who each check a part: which one, and of how
    many.
    """
    files = [name for name in sorted(manifest["files"]) if holds_tensors(name)]
    found: set[str] = set()
    for name in files:
        part, stored = part_of(name), read_header(path / name)
        for each in stored.values():
            if f"{part}/{each.name}" in found:
                yield f"{path / name}: {each.name} stands in another file, too"
            found.add(f"{part}/{each.name}")
        if manifest["format"] == 1:  # the whole file's hash was checked
            continue
        with (path / name).open("rb") as file:
            own = [each for number, each in enumerate(stored.values()) if number % share[1] == share[0]]
            for each in own:
                listed = manifest["tensors"].get(f"{part}/{each.name}")
                if listed is not None and _hash(file, each) != listed:
                    yield f"{path / name} was altered: {each.name} differs from its hash in {MANIFEST}"
    if lacking := manifest["tensors"].keys() ^ found:
        part = sorted(lacking)[0].partition("/")[0]
        yield f"{path}: {part} hold other tensors than {MANIFEST} lists ({_some(lacking)})"


def holds_tensors(name: str) -> bool:
    """Whether a file of a checkpoint is one of tensors, by its name."""
    return name.endswith(".safetensors") and part_of(name) in PARTS


def part_of(name: str) -> str:
    """The part of a checkpoint of which a file has tensors."""
    return name.partition("-")[0]


def _hash(file: Any, tensor: Stored) -> str:
    file.seek(tensor.start)
    left, state = tensor.size, blake3()
    while left and (piece := file.read(min(left, PIECE))):
        state.update(piece)
        left -= len(piece)
    return str(state.hexdigest(length=16))


def _some(names: set[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")
