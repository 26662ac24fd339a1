"""A checkpoint's tensors; what else is in it is read by `dtrain.format`."""

from pathlib import Path

import torch

from dtrain.backends.torch_weights import tensors_of
from dtrain.format.checkpoints import Checkpoint as Checkpoint
from dtrain.format.checkpoints import checkpoints_in as checkpoints_in
from dtrain.format.checkpoints import open_checkpoint as open_checkpoint
from dtrain.format.checkpoints import step_of as step_of
from dtrain.format.files import PARTS
from dtrain.format.runs import checkpoint_at


def newest_of(path: Path | str, *, hashes: bool | None = None) -> Checkpoint:
    """The checkpoint that a path names, as `checkpoint_at` finds it; whole, as `open_checkpoint` has it."""
    return open_checkpoint(checkpoint_at(path), hashes=hashes)


def all_tensors(checkpoint: Checkpoint) -> dict[str, dict[str, torch.Tensor]]:
    """Every tensor, by part and name."""
    return {part: tensors_of(checkpoint, part) for part in PARTS}
