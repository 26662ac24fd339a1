"""Specs as torch modules."""

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from dtrain.backends.torch_batch_norm import RecordingBatchNorm
from dtrain.backends.torch_imported import Site, build_imported_model
from dtrain.backends.torch_layers import stack
from dtrain.backends.torch_sequence import Position
from dtrain.backends.torch_weights import load_weights
from dtrain.backends.torch_weights_file import load_file
from dtrain.spec.models import Model, ModelSpec, weights_of
from dtrain.spec.trust import EVERYTHING, Trust


def build_model(name: str, spec: Model, *, seed: int, trust: Trust = EVERYTHING) -> nn.Module:
    """Build a model on the CPU with its first weights: float32, or float64 where those it begins with are.

    Raises RecipeError if it, or a layer of it, is imported and cannot be had, or the file that it begins with
    cannot be, and CheckpointError if its checkpoint cannot be.
    """
    module = outlined(name, spec, seed=seed, trust=trust)
    if any(tensor.is_meta for tensor in module.state_dict().values()):
        allocate(module, torch.device("cpu"))
    own = dict(module.named_parameters())
    with torch.no_grad():
        for key, value in first_weights(name, spec, seed):
            own[key].copy_(value)
    if spec.weights_from is not None:
        load_weights(module, spec.weights_from)
    if (source := weights_of(spec)) is not None:
        load_file(name, module, source)
    return module


def outlined(name: str, spec: Model, *, seed: int, trust: Trust = EVERYTHING) -> nn.Module:
    """Build a model without memory for its weights, on torch's meta device: what is imported has it all.

    `allocate` gives it memory, and `first_weights` what is to stand there. Raises RecipeError where
    `build_model` does.
    """
    if not isinstance(spec, ModelSpec):
        return build_imported_model(name, spec, seed=seed, trust=trust)
    with nullcontext() if spec.imports_layers else torch.device("meta"):
        module: nn.Module = stack(spec.layers, spec.input, Site(name, seed, trust))
    return module


def allocate(module: nn.Module, device: torch.device) -> None:
    """Give an outlined model, or this rank's parts of it, memory on a device; statistics begin anew."""
    module.to_empty(device=device)
    for norm in batch_norms(module):
        norm.reset_running_stats()


def first_weights(name: str, spec: Model, seed: int) -> Iterator[tuple[str, Tensor]]:
    """The first values of each parameter that is not imported, one whole tensor at a time."""
    for key, value in spec.first_weights(seed, name) if isinstance(spec, ModelSpec) else ():
        yield key, torch.from_numpy(value)


def batch_norms(module: nn.Module) -> list[RecordingBatchNorm]:
    """The batch normalisations inside a model, in order."""
    return [child for child in module.modules() if isinstance(child, RecordingBatchNorm)]


def trained_parameters(module: nn.Module) -> dict[str, Tensor]:
    """The parameters of a model by name, but for those that came frozen."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def embeddings(module: nn.Module) -> set[str]:
    """The names of the parameters that hold a vector for each token or place."""
    kinds = nn.Embedding | nn.EmbeddingBag | Position
    tables = [child.weight for child in module.modules() if isinstance(child, kinds)]
    return {name for name, own in module.named_parameters() if any(own is table for table in tables)}
