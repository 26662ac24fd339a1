"""Finds checkpoints and reads what is no tensor in them: checked first, and nothing is ever executed."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.errors import CheckpointError
from dtrain.format.files import MANIFEST, RECIPE, STATE, canonical, folder_name, hash_of, hash_of_file, unseal

NAME = re.compile(r"step-\d{8,}")
SMALL = (RECIPE, STATE)  # the files that are read whole


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
    def checksum(self) -> str:
        """That of the manifest, which holds the hashes of all files: no other checkpoint has it."""
        return hash_of(canonical(self.manifest))


def open_checkpoint(path: Path) -> Checkpoint:
    """Check every file of a checkpoint against its manifest, sizes and hashes, and read the small ones.

    Raises CheckpointError naming the file that is missing, cut short or altered.
    """
    return _read(path, None)


def glance_at(path: Path) -> Checkpoint:
    """The same of the small files alone, which takes no time whatever the size of the models."""
    return _read(path, SMALL)


def _read(path: Path, only: tuple[str, ...] | None) -> Checkpoint:
    manifest = unseal(path / MANIFEST)
    try:
        files = {name: (entry["size"], entry["hash"]) for name, entry in manifest["files"].items()}
        list(manifest["tensors"])
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / MANIFEST} is not one of dtrain's: {error!r}") from None
    for name, (size, digest) in files.items():
        if only is None or name in only:
            _check(path, name, size, digest)
    missing = [name for name in SMALL if name not in files]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}")
    try:
        state = json.loads((path / STATE).read_bytes())
        recipe = (path / RECIPE).read_text(encoding="utf-8")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path / STATE} is not one of dtrain's: it holds no table")
    return Checkpoint(path, manifest, state, recipe)


def _check(path: Path, name: str, size: int, digest: str) -> None:
    file = path / name
    if Path(name).name != name or file.is_symlink() or not file.is_file():
        raise CheckpointError(f"{file} is missing, or not a file of this checkpoint")
    found = file.stat().st_size
    if found != size:
        raise CheckpointError(f"{file} was cut short or altered: {found} bytes, not {size}")
    if hash_of_file(file) != digest:
        raise CheckpointError(f"{file} was altered: its hash differs from the one in {MANIFEST}")


def checkpoints_in(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; every folder under its final name is whole."""
    folder = run / "checkpoints"
    found = folder.iterdir() if folder.is_dir() else ()
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
        if newest.get("step", 0) >= newest.get("total", 0):
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
