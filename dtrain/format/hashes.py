"""Whether files are those that a manifest lists: every byte is a header's, a tensor's, or a small file's."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dtrain.errors import CheckpointError
from dtrain.format.files import MANIFEST, PARTS, Hash, hash_of, in_groups
from dtrain.format.safetensors_header import Stored, read_header, read_raw

PIECE = 1 << 20  # bytes read at once: they stay in the processor's cache until they are hashed
WORK = 1 << 26  # bytes that are worth a thread
THREADS = 4  # at most

Headers = Mapping[str, Mapping[str, Stored]]  # the tensors of each file, by name
Tell = Callable[[int], None]  # that so many more bytes were read


class Problem(NamedTuple):
    """What is wrong with a file of a checkpoint, or with a tensor of it."""

    file: str
    tensor: str  # "" of the file
    message: str  # a whole sentence, with the path

    def __str__(self) -> str:
        return self.message


def digest_of(file: Path, form: int) -> str:
    """What a manifest records of a file: of one of tensors the hash of its header, as each has its own.

    In format 1 that of the whole file. Raises CheckpointError if it cannot be read.
    """
    try:
        with file.open("rb") as opened:
            if form != 1 and holds_tensors(file.name):
                return hash_of(read_raw(opened))
            state = Hash(form)
            while piece := opened.read(PIECE):
                state.update(piece)
            return state.text()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None


def headers_of(path: Path, manifest: Mapping[str, Any]) -> dict[str, dict[str, Stored]]:
    """What the headers of a checkpoint's files say. Raises CheckpointError where one cannot be."""
    return {name: read_header(path / name) for name in sorted(manifest["files"]) if holds_tensors(name)}


def by_part(headers: Headers) -> dict[str, dict[str, Stored]]:
    """The tensors of each part, whatever files they are in."""
    found: dict[str, dict[str, Stored]] = {part: {} for part in PARTS}
    for name, tensors in headers.items():
        found[part_of(name)].update(tensors)
    return found


def misplaced(path: Path, manifest: Mapping[str, Any], headers: Headers) -> Iterator[Problem]:
    """Every tensor that is in two files, or in none, or that the manifest does not list."""
    homes: dict[str, str] = {}
    for name, tensors in headers.items():
        for tensor in tensors:
            listed = f"{part_of(name)}/{tensor}"
            if listed in homes:
                said = f"{path / name}: {_shown(tensor)} stands in {homes[listed]}, too"
                yield Problem(name, tensor, said)
            elif listed not in manifest["tensors"]:
                yield Problem(name, tensor, f"{path / name}: {_shown(tensor)} is not listed in {MANIFEST}")
            homes.setdefault(listed, name)
    for listed in sorted(manifest["tensors"].keys() - homes.keys()):
        said = f"{path / MANIFEST} lists {_shown(listed)}, which is in no file"
        yield Problem(MANIFEST, listed, said)


def altered(
    path: Path,
    manifest: Mapping[str, Any],
    headers: Headers,
    *,
    share: tuple[int, int] = (0, 1),
    tell: Tell = lambda _: None,
) -> Iterator[Problem]:
    """Every tensor that differs from its hash, of those that the manifest lists.

    `share` is of several processes which each check a part: which one, and of how many.
    """
    work = partial(_differing, path, manifest, tell)
    loads = list(_loads(headers, share))
    size = sum(each.size for _, load in loads for each in load)
    threads = min(THREADS, os.cpu_count() or 1, size // WORK)
    if threads < 2 or share[1] > 1:  # others have work for the other cores
        for load in loads:
            yield from work(load)
        return
    with ThreadPoolExecutor(threads) as pool:
        for problems in pool.map(work, loads):
            yield from problems


def other_than_hashed(file: Path, tensor: str | None = None) -> str:
    """What is said of a file, or of a tensor in it, whose bytes are not those that were hashed."""
    which = "it" if tensor is None else _shown(tensor)
    return f"{file} was altered: {which} differs from its hash in {MANIFEST}"


def holds_tensors(name: str) -> bool:
    """Whether a file of a checkpoint is one of tensors, by its name."""
    return name.endswith(".safetensors") and part_of(name) in PARTS


def part_of(name: str) -> str:
    """The part of a checkpoint of which a file has tensors."""
    return name.partition("-")[0]


def _loads(headers: Headers, share: tuple[int, int]) -> Iterator[tuple[str, Sequence[Stored]]]:
    """A share of the tensors, in portions of a file that are worth a thread each."""
    place, of = share
    for name, tensors in headers.items():
        for load in in_groups(list(tensors.values())[place::of], lambda each: each.size, WORK):
            yield name, load


def _differing(
    path: Path, manifest: Mapping[str, Any], tell: Tell, load: tuple[str, Sequence[Stored]]
) -> list[Problem]:
    name, tensors = load
    part, found = part_of(name), []
    buffer = memoryview(bytearray(min(PIECE, max(each.size for each in tensors))))
    try:
        with (path / name).open("rb", buffering=0) as file:
            for each in tensors:
                state, left = Hash(manifest["format"]), each.size
                file.seek(each.start)
                while left and (count := file.readinto(buffer[: min(left, len(buffer))])):
                    state.update(buffer[:count])
                    tell(count)
                    left -= count
                listed = manifest["tensors"].get(f"{part}/{each.name}")
                if listed is not None and listed != state.text():
                    found.append(Problem(name, each.name, other_than_hashed(path / name, each.name)))
    except OSError as error:
        found.append(Problem(name, "", f"{path / name} cannot be read: {error}"))
    return found


def _shown(name: str) -> str:
    """The name of a tensor as errors have it: a stranger's may be of any length, and of any letters."""
    return name if name.isprintable() and 0 < len(name) <= 200 else repr(name[:80])
