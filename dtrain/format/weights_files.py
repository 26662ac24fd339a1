"""Finds the safetensors files that hold a model's weights, whoever wrote them, and reads their headers.

No other format is read: what Python's pickle has written can run code when it is opened.
"""

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

from dtrain.errors import CheckpointError
from dtrain.format.files import LARGEST, MANIFEST, parse
from dtrain.format.safetensors_header import Stored, read_header

SUFFIX, INDEX = ".safetensors", ".safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
PACKAGED = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^:]+)")
SHOWN = 4  # names that are shown of several


class Found(NamedTuple):
    """The files that a path means, and what an index says of them: the name of the file of each tensor."""

    files: tuple[Path, ...]
    listed: Mapping[str, str] | None = None


class Weights(NamedTuple):
    """Tensors by name, each with the file that holds it; and all files."""

    files: tuple[Path, ...]
    tensors: Mapping[str, tuple[Path, Stored]]


def packaged(path: Path) -> tuple[str, str] | None:
    """The package and the path in it, of `package:folder/file.safetensors`; None of any other path."""
    found = PACKAGED.fullmatch(str(path))
    return (found[1], found[2]) if found else None


def open_weights(path: Path) -> Weights:
    """Read the headers of all files that a path means.

    Raises CheckpointError if one is missing, or not what it should be.
    """
    return open_files(files_of(path))


def open_files(found: Found) -> Weights:
    """The same of files that were found."""
    tensors: dict[str, tuple[Path, Stored]] = {}
    for file in found.files:
        if not file.is_file():  # a pipe or a device may have no end
            raise CheckpointError(f"{file} {'is no file' if file.exists() else 'does not exist'}")
        for name, stored in read_header(file).items():
            if name in tensors:
                raise CheckpointError(f"{file}: {name[:80]!r} stands in {tensors[name][0].name}, too")
            tensors[name] = (file, stored)
    if found.listed is not None:
        here = {name: file.name for name, (file, _) in tensors.items()}
        if wrong := sorted(dict(found.listed.items() ^ here.items())):
            more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
            said = ", ".join(repr(name[:80]) for name in wrong[:SHOWN]) + more
            raise CheckpointError(f"{found.files[0].parent}: the index and its files do not agree on {said}")
    return Weights(found.files, tensors)


def checksum(files: Sequence[Path]) -> str:
    """What tells the bytes of some files from all others: BLAKE3 of the file, or of those of all of them.

    Takes a second for 2 GB or so. Raises CheckpointError if a file cannot be read.
    """
    digests = [_digest(file) for file in files]
    whole = digests[0] if len(digests) == 1 else blake3("\n".join(digests).encode()).hexdigest(length=16)
    return str(whole)


def _digest(file: Path) -> str:
    try:
        return str(blake3().update_mmap(file).hexdigest(length=16))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None


def files_of(path: Path) -> Found:
    """The files that a path means: itself, those of an index, or of the one that a folder has.

    Raises CheckpointError if there is none, or it is of another format.
    """
    if (inside := packaged(path)) is not None:
        path = _in_package(*inside)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if path.is_dir():
        path = _one_of(path)
    if path.suffix == ".json":
        return _indexed(path)
    if path.suffix != SUFFIX:
        raise CheckpointError(_said_of_format(path))
    return Found((path,))


def _in_package(package: str, inner: str) -> Path:
    """A file of a package, of which nothing is imported."""
    top, *rest = package.split(".")
    try:
        found = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        found = None
    homes = [Path(home, *rest) for home in (found and found.submodule_search_locations) or ()]
    if not any(home.is_dir() for home in homes):
        raise CheckpointError(f"there is no package {package}; is it installed?")
    if ".." in Path(inner).parts or Path(inner).is_absolute():
        raise CheckpointError(f"{package}:{inner} leads out of the package")
    for home in homes:
        if (home / inner).exists():
            return home / inner
    raise CheckpointError(f"the package {package} has no {inner}")


def _one_of(folder: Path) -> Path:
    """The index in a folder, or else the only file there."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from None
    runs = [folder, *(folder / name for name in names)]
    if MANIFEST in names or any((run / "checkpoints").is_dir() for run in runs):
        said = 'weights_from = { path = "...", model = "..." } takes it'
        raise CheckpointError(f"{folder} holds what dtrain has trained; {said}")
    for suffix in (INDEX, SUFFIX):
        if found := [name for name in names if name.endswith(suffix)]:
            if len(found) == 1:
                return folder / found[0]
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            raise CheckpointError(f"{folder} has {', '.join(found[:SHOWN])}{more}; the path of one would do")
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        raise CheckpointError(_said_of_format(folder / pickles[0]))
    raise CheckpointError(f"{folder} has no {SUFFIX} file")


def _indexed(path: Path) -> Found:
    """The files of an index as Hugging Face's tools write it."""
    if not path.is_file() or path.stat().st_size > LARGEST:
        raise CheckpointError(f"{path} is no index of weights")
    try:
        table = parse(path.read_bytes(), path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    listed: Any = table.get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(n, str) for n in listed.values()):
        raise CheckpointError(f"{path} is no index of weights: it has no weight_map of names of files")
    names = sorted(set(listed.values()))
    for name in names:
        if name.endswith(PICKLES):
            raise CheckpointError(_said_of_format(path.with_name(Path(name).name)))
        if Path(name).name != name or not name.endswith(SUFFIX):
            raise CheckpointError(f"{path} lists {name[:80]!r}, which is no {SUFFIX} file beside it")
    return Found(tuple(path.with_name(name) for name in names), listed)


def _said_of_format(path: Path) -> str:
    if path.suffix not in PICKLES:
        return f"{path}: weights come from {SUFFIX} files, not {path.suffix or 'this'}"
    ways = f'save_file(torch.load("{path.name}", weights_only=True), "{path.stem}{SUFFIX}")'
    return f"{path} is a pickle, which can run code when it is opened; safetensors.torch.{ways} converts it"
