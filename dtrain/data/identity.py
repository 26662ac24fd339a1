"""What tells data from other data: a fingerprint of each part, wherever it lies, and how two of them differ.

A hash of all that there is, where that takes seconds; of files that are more than that, their names, sizes
and times, and a sample of their bytes. Of a dataset that lies nobody knows where, a sample of its examples.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from blake3 import blake3

from dtrain.data.source import Arrayed, Examples, Filed, Stretch
from dtrain.errors import DataError

Fingerprint = dict[str, int | str]  # what is compared -> a number or a hash
MOST_BYTES, MOST_FILES = 1 << 32, 10_000  # of which all are read: some seconds
SAMPLED = 256  # examples, or pieces of files, at most
TWICE = 16  # of them, which are fetched again to see whether they repeat
PIECE, CHUNK = 1 << 20, 1 << 24  # bytes

PARTS: Mapping[str, str] = {"train": "training", "evaluate": "evaluation"}


def fingerprint(examples: Examples) -> Fingerprint:
    """What tells these examples from others. Raises DataError if their files cannot be read."""
    own: Fingerprint = {"examples": len(examples)}
    if isinstance(examples, Arrayed):  # in memory as a whole, so that to hash is less than it was to read
        return own | {"contents": _hash(_bytes(examples.arrays()))}
    if isinstance(examples, Filed):
        return own | _of_files(examples.files())
    return own | _of_values(examples)


def differences(then: Mapping[str, Fingerprint], now: Mapping[str, Fingerprint]) -> dict[str, str]:
    """What of each part differs, in words; a part that was not there, or is not, has nothing to differ in."""
    found = {part: _difference(then[part], now[part]) for part in PARTS if part in then and part in now}
    return {part: said for part, said in found.items() if said}


def _difference(then: Fingerprint, now: Fingerprint) -> str:
    """The first that differs and says most; what only one of them has says nothing."""
    different = {key for key in {*then} & {*now} if then[key] != now[key]}
    words = {
        "examples": f"{now['examples']} examples, and there were {then['examples']}",
        "files": "files that were added, removed, renamed or have another size",
        "contents": "other contents",
        "sample": "other contents",
        "values": "examples of other values, for which its arguments and the recipe's seed count, too",
        "times": "files of other times, though a sample of their bytes is the same: a copy of them, perhaps",
    }
    return next((said for key, said in words.items() if key in different), "")


def _of_files(files: Sequence[Stretch]) -> Fingerprint:
    listed = _hash(f"{file.name}\0{file.size}\0".encode() for file in files)
    try:
        if len(files) <= MOST_FILES and sum(file.size for file in files) <= MOST_BYTES:
            return {"files": listed, "contents": _hash(piece for file in files for piece in _read(file))}
        times = _hash(int(file.path.stat().st_mtime).to_bytes(8, "little", signed=True) for file in files)
        return {"files": listed, "sample": _hash(_sample(files)), "times": times}
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error})") from error


def _sample(files: Sequence[Stretch]) -> Iterator[bytes]:
    """Files that lie evenly among all; of those that are large, pieces that lie evenly in each."""
    chosen = [files[number] for number in _spaced(len(files), SAMPLED)]
    most = SAMPLED // len(chosen)
    for file in chosen:
        if file.size <= most * PIECE:
            yield from _read(file)
            continue
        for start in _spaced(file.size - PIECE + 1, most):
            yield from _read(file._replace(start=file.start + start, size=PIECE))


def _read(file: Stretch) -> Iterator[bytes]:
    with file.path.open("rb") as opened:
        opened.seek(file.start)
        left = file.size
        while left and (piece := opened.read(min(left, CHUNK))):
            yield piece
            left -= len(piece)


def _of_values(examples: Examples) -> Fingerprint:
    """Of a sample of examples, as they are fetched in epoch 0; nothing where they are others each time."""
    chosen = _spaced(len(examples), SAMPLED)
    again = chosen[:TWICE]
    if _hash(_values(examples, again)) != _hash(_values(examples, again)):
        return {}
    return {"values": _hash(_values(examples, chosen))}


def _values(examples: Examples, indices: Iterable[int]) -> Iterator[bytes | memoryview]:
    for index in indices:
        try:
            pieces = list(_bytes(examples.fetch(np.array([index]), 0)))
        except Exception:  # of the user's code; a run that comes to this example says what is wrong with it
            pieces = [b"cannot be read"]
        yield from pieces


def _bytes(arrays: Mapping[str, np.ndarray]) -> Iterator[bytes | memoryview]:
    for name, values in sorted(arrays.items()):
        yield f"{name}\0{values.dtype.str}\0{values.shape}\0".encode()
        yield np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def _hash(pieces: Iterable[bytes | memoryview]) -> str:
    state = blake3()
    for piece in pieces:
        state.update(piece)
    return state.hexdigest(length=16)


def _spaced(count: int, most: int) -> list[int]:
    """Numbers below `count` that lie evenly, the first and the last with them: all, where these are few."""
    taken = min(count, most)
    return [number * (count - 1) // max(taken - 1, 1) for number in range(taken)]
