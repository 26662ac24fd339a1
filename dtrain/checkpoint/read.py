"""Reads a checkpoint: everything is checked first, and nothing in it is ever executed."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dtrain.checkpoint.format import MANIFEST, PARTS, RECIPE, STATE, hash_of_file, unseal
from dtrain.errors import CheckpointError

NAME = re.compile(r"step-\d{8,}")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose every file was found whole."""

    path: Path
    manifest: Mapping[str, Any]
    state: Mapping[str, Any]
    recipe: str  # resolved, as it was when it was saved

    @property
    def step(self) -> int:
        return int(self.state["step"])

    def tensors(self, part: str) -> dict[str, torch.Tensor]:
        """The tensors of one part ("models", "optimizers", "averages") by canonical name."""
        tensors: dict[str, torch.Tensor] = {}
        for name in sorted(self.manifest["files"]):
            if name.startswith(f"{part}-") and name.endswith(".safetensors"):
                try:
                    tensors |= load_file(self.path / name)
                except (OSError, SafetensorError, ValueError) as error:
                    raise CheckpointError(f"{self.path / name} cannot be read: {error}") from None
        listed = {key.partition("/")[2] for key in self.manifest["tensors"] if key.startswith(f"{part}/")}
        if listed != tensors.keys():
            raise CheckpointError(f"{self.path}: {part} hold other tensors than {MANIFEST} lists")
        return tensors


def open_checkpoint(path: Path) -> Checkpoint:
    """Check every file of a checkpoint against its manifest, sizes and hashes, and read the small ones.

    Raises CheckpointError naming the file that is missing, cut short or altered.
    """
    manifest = unseal(path / MANIFEST)
    try:
        files = {name: (entry["size"], entry["hash"]) for name, entry in manifest["files"].items()}
        list(manifest["tensors"])
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / MANIFEST} is not one of dtrain's: {error!r}") from None
    for name, (size, digest) in files.items():
        file = path / name
        if Path(name).name != name or file.is_symlink() or not file.is_file():
            raise CheckpointError(f"{file} is missing, or not a file of this checkpoint")
        found = file.stat().st_size
        if found != size:
            raise CheckpointError(f"{file} was cut short or altered: {found} bytes, not {size}")
        if hash_of_file(file) != digest:
            raise CheckpointError(f"{file} was altered: its hash differs from the one in {MANIFEST}")
    missing = [name for name in (RECIPE, STATE) if name not in files]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}")
    try:
        state = json.loads((path / STATE).read_bytes())
        recipe = (path / RECIPE).read_text(encoding="utf-8")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    return Checkpoint(path, manifest, state, recipe)


def all_tensors(checkpoint: Checkpoint) -> dict[str, dict[str, torch.Tensor]]:
    """Every tensor, by part and name."""
    return {part: checkpoint.tensors(part) for part in PARTS}


def checkpoints_in(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; every folder under its final name is whole."""
    folder = run / "checkpoints"
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in found if NAME.fullmatch(path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(checkpoint.name.removeprefix("step-"))
