"""Finds checkpoints and reads what is no tensor in them: checked first, and nothing is ever executed."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.errors import CheckpointError
from dtrain.format.files import (
    MANIFEST,
    RECIPE,
    STATE,
    canonical,
    folder_name,
    hash_of,
    parse,
    read_small,
    unseal,
)
from dtrain.format.hashes import altered, digest_of, headers_of, misplaced, other_than_hashed
from dtrain.format.state import check_state, is_step

NAME = re.compile(r"step-\d{8,15}")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
SMALL = (RECIPE, STATE)  # the files that are read whole
QUICK = 1 << 30  # bytes of a checkpoint whose hashes are checked whenever it is opened: a third of a second


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were found whole; where only glanced at, its small ones."""

    path: Path
    manifest: Mapping[str, Any]
    state: Mapping[str, Any]
    recipe: str  # resolved, as it was when it was saved

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @property
    def format(self) -> int:
        return int(self.manifest["format"])

    @property
    def size(self) -> int:
        """Bytes of all its files but the manifest."""
        return sum(entry["size"] for entry in self.manifest["files"].values())

    @property
    def checksum(self) -> str:
        """That of the manifest, which holds the hashes of all files: no other checkpoint has it."""
        return hash_of(canonical(self.manifest), self.format)


def open_checkpoint(path: Path, *, hashes: bool | None = None, share: tuple[int, int] = (0, 1)) -> Checkpoint:
    """Check every file of a checkpoint against its manifest, and read the small ones.

    Sizes and headers always; of tensors the `hashes` too where asked for, or, if nothing is said, where there
    is at most a GB of them. `share` is of several processes which each check the hashes of a part: which one,
    and of how many. Raises CheckpointError naming the file that is missing, cut short or altered.
    """
    checkpoint = _read(path, None)
    manifest, headers = checkpoint.manifest, headers_of(path, checkpoint.manifest)
    for problem in misplaced(path, manifest, headers):
        raise CheckpointError(problem.message)
    if checkpoint.size <= QUICK if hashes is None else hashes:
        for problem in altered(path, manifest, headers, share=share):
            raise CheckpointError(problem.message)
    return checkpoint


def glance_at(path: Path) -> Checkpoint:
    """The same of the small files alone, which takes no time whatever the size of the models."""
    return _read(path, SMALL)


def _read(path: Path, only: tuple[str, ...] | None) -> Checkpoint:
    manifest = read_manifest(path)
    if said := renamed(path, manifest):
        raise CheckpointError(said)
    for name in manifest["files"]:
        if only is None or name in only:
            check_file(path, name, manifest)
    return Checkpoint(path, manifest, read_state(path, manifest), read_recipe(path))


def renamed(path: Path, manifest: Mapping[str, Any]) -> str | None:
    """What is wrong if a folder has the name of another step than its manifest; None where nothing is."""
    own = path.absolute()
    if not NAME.fullmatch(own.name) or manifest.get("step", step_of(own)) == step_of(own):
        return None
    return f"{path / MANIFEST} is of step {manifest['step']}, and its folder is of another"


def read_manifest(path: Path) -> dict[str, Any]:
    """What lists the files of a checkpoint. Raises CheckpointError unless it is whole, and as ours are."""
    manifest = unseal(file := path / MANIFEST)
    match manifest:
        case {"files": dict(files), "tensors": dict(tensors), "environment": dict(), "step": int(step)} if (
            is_step(step)
        ):
            pass
        case _:
            said = "it lists no files, tensors, step or environment"
            raise CheckpointError(f"{file} is not one of dtrain's: {said}")
    for name, entry in files.items():
        if not FILE_NAME.fullmatch(name):
            raise CheckpointError(f"{file} lists {name[:80]!r}, which is not a file of this checkpoint")
        match entry:
            case {"size": int(size), "hash": str()} if size >= 0 and type(size) is int:
                pass
            case _:
                raise CheckpointError(f"{file} is not one of dtrain's: {name} has no size and hash")
    for name, digest in tensors.items():
        if not isinstance(digest, str):
            raise CheckpointError(f"{file} is not one of dtrain's: {name[:80]!r} has no hash")
    match manifest.get("origin"):
        case None | {"path": str(), "step": int(), "checksum": str()}:
            pass
        case _:
            raise CheckpointError(f"{file} is not one of dtrain's: what it began from cannot be")
    if missing := [name for name in SMALL if name not in files]:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}")
    return manifest


def read_state(path: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """How far a run had come, and what else is no tensor. Raises CheckpointError where that cannot be."""
    state = parse(read_small(path / STATE), path / STATE)
    check_state(path / STATE, state, manifest["step"])
    return state


def read_recipe(path: Path) -> str:
    """The resolved recipe. Raises CheckpointError if it cannot be read."""
    try:
        return read_small(path / RECIPE).decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path / RECIPE} cannot be read: {error}") from None


def check_file(path: Path, name: str, manifest: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless a file has the size and the hash that the manifest lists."""
    file, entry = path / name, manifest["files"][name]
    try:
        if file.is_symlink():
            raise CheckpointError(f"{file} is a link, and not a file of this checkpoint")
        if not file.is_file():
            raise CheckpointError(f"{file} is missing, or not a file of this checkpoint")
        found = file.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    if found != entry["size"]:
        raise CheckpointError(f"{file} was cut short or altered: {found} bytes, not {entry['size']}")
    if digest_of(file, manifest["format"]) != entry["hash"]:
        raise CheckpointError(other_than_hashed(file))


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is a checkpoint, by its manifest or else, as that may be gone, by its name."""
    return os.path.lexists(path / MANIFEST) or (path.is_dir() and bool(NAME.fullmatch(path.absolute().name)))


def checkpoints_in(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; every folder under its final name is whole."""
    folder = run / "checkpoints"
    try:
        found = list(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from None
    return sorted((path for path in found if NAME.fullmatch(path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(checkpoint.name.removeprefix("step-"))


def chosen(path: Path) -> Path:
    """The checkpoint that a path means: itself, the best or else the newest of a run, or of the newest
    finished run among those of one name, runs/NAME.

    Raises CheckpointError if there is none, or it cannot be read.
    """
    if (path / MANIFEST).is_file():
        return path
    if checkpoints_in(path):
        return _best_of(path)
    runs = [run for run in _runs_in(path) if checkpoints_in(run)]
    for run in runs:
        newest = glance_at(checkpoints_in(run)[-1]).state
        if newest["step"] >= newest["total"]:
            return _best_of(run)
    if runs:
        raise CheckpointError(f"{path} has no finished run")
    raise CheckpointError(f"{path} {'has no checkpoint' if path.is_dir() else 'does not exist'}")


def _runs_in(path: Path) -> Iterator[Path]:
    """The runs of one name, newest first."""
    if path.is_dir():
        yield from sorted((run for run in path.glob("[!.]*") if run.is_dir()), reverse=True)


def _best_of(run: Path) -> Path:
    newest = checkpoints_in(run)[-1]
    match glance_at(newest).state.get("best"):
        case {"at": [int(step), _]} if (best := newest.with_name(folder_name(step))).is_dir():
            return best
    return newest
