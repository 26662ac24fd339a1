"""Weights out of checkpoints."""

from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dtrain.errors import CheckpointError
from dtrain.format.checkpoints import Checkpoint, open_checkpoint
from dtrain.format.files import MANIFEST
from dtrain.format.hashes import holds_tensors, part_of
from dtrain.spec.models import WeightsFrom

# What safetensors and torch raise of a file that is none of ours, or changes while it is read.
UNREADABLE = (OSError, SafetensorError, ValueError, LookupError, TypeError, ArithmeticError, RuntimeError)


def tensors_of(checkpoint: Checkpoint, part: str) -> dict[str, Tensor]:
    """The tensors of one part of a checkpoint ("models", "optimizers", "averages") by canonical name.

    Raises CheckpointError if they cannot be read, or are not those that it lists.
    """
    tensors: dict[str, Tensor] = {}
    for name in sorted(checkpoint.manifest["files"]):
        if holds_tensors(name) and part_of(name) == part:
            try:
                tensors |= load_file(checkpoint.path / name)
            except UNREADABLE as error:
                raise CheckpointError(f"{checkpoint.path / name} cannot be read: {error}") from None
    listed = {key.partition("/")[2] for key in checkpoint.manifest["tensors"] if key.startswith(f"{part}/")}
    if listed != tensors.keys():
        raise CheckpointError(f"{checkpoint.path}: {part} hold other tensors than {MANIFEST} lists")
    return tensors


def model_of(checkpoint: Checkpoint, name: str, *, averages: bool) -> dict[str, Tensor]:
    """The tensors of one model by their names in it: those of its moving average, where it is asked for."""
    tensors = tensors_of(checkpoint, "models")
    if averages:
        tensors |= tensors_of(checkpoint, "averages")
    found = {key.partition("/")[2]: value for key, value in tensors.items() if key.startswith(f"{name}/")}
    if not found:
        there = ", ".join(dict.fromkeys(key.partition("/")[0] for key in tensors)) or "none"
        raise CheckpointError(f"{checkpoint.path} has no model {name!r}; there is {there}")
    return found


def load_weights(module: nn.Module, source: WeightsFrom) -> None:
    """Give a model the weights that a checkpoint holds, in the precision that it holds them in.

    Raises CheckpointError if it is damaged, another than the recipe means, or of another model.
    """
    checkpoint = open_checkpoint(source.path)
    if source.checksum not in (None, checkpoint.checksum):
        raise CheckpointError(f"{source.path} is not the checkpoint that the recipe was made with any more")
    given = model_of(checkpoint, source.model, averages=source.averages)
    if any(value.dtype == torch.float64 for value in given.values()):
        module.double()
    try:
        restore_tensors({source.model: named_tensors(module)}, {source.model: given})
    except CheckpointError as error:
        raise CheckpointError(f"{source.path}: {error}") from None


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Everything of a model that a checkpoint holds: parameters and persistent buffers, each once."""
    state = module.state_dict(keep_vars=True)
    kept = {id(tensor) for tensor in state.values()}
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    return {name: tensor for name, tensor in tensors.items() if id(tensor) in kept}


def restore_tensors(
    own: Mapping[str, Mapping[str, Tensor]], given: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Copy tensors in place, part by part.

    Raises CheckpointError unless names and shapes are the same, and every number has room in its place.
    """
    for part, tensors in own.items():
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        check_names(part, shapes, given.get(part, {}))
        for name, tensor in tensors.items():
            if not _has_room(tensor.dtype, found := given[part][name].dtype):
                said = f"{name} is of {found}, and the recipe's of {tensor.dtype}"
                raise CheckpointError(f"{part} do not fit the recipe: {said}")
    with torch.no_grad():
        for part, tensors in own.items():
            for name, tensor in tensors.items():
                tensor.copy_(given[part][name])


def _has_room(own: torch.dtype, given: torch.dtype) -> bool:
    """Whether a type takes all numbers of another as they are."""
    is_wider = own.is_floating_point and given.is_floating_point and own.itemsize > given.itemsize
    return own == given or is_wider


def check_names(part: str, own: Mapping[str, tuple[int, ...]], given: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless what is given has these names and shapes."""
    wrong = [f"missing {name}" for name in own.keys() - given.keys()]
    wrong += [f"unexpected {name}" for name in given.keys() - own.keys()]
    wrong += [
        f"{name} is {tuple(given[name].shape)}, not {shape}"
        for name, shape in own.items()
        if name in given and tuple(given[name].shape) != shape
    ]
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise CheckpointError(f"{part} do not fit the recipe: {'; '.join(sorted(wrong)[:8])}{more}")
