"""Specs as torch modules."""

import torch
from torch import Tensor, nn

from dtrain.backends.torch_batch_norm import RecordingBatchNorm
from dtrain.backends.torch_imported import Site, build_imported_model
from dtrain.backends.torch_layers import stack
from dtrain.backends.torch_sequence import Position
from dtrain.backends.torch_weights import load_weights
from dtrain.spec.models import Model, ModelSpec
from dtrain.spec.trust import EVERYTHING, Trust


def build_model(name: str, spec: Model, *, seed: int, trust: Trust = EVERYTHING) -> nn.Module:
    """Build a model on the CPU with its first weights: float32, or those of a checkpoint as they are there.

    Raises RecipeError if it, or a layer of it, is imported and cannot be had, and CheckpointError if its
    checkpoint cannot be.
    """
    module = _build(name, spec, seed, trust)
    if spec.weights_from is not None:
        load_weights(module, spec.weights_from)
    return module


def _build(name: str, spec: Model, seed: int, trust: Trust) -> nn.Module:
    if not isinstance(spec, ModelSpec):
        return build_imported_model(name, spec, seed=seed, trust=trust)
    module: nn.Module = stack(spec.layers, spec.input, Site(name, seed, trust))
    own = dict(module.named_parameters())
    with torch.no_grad():
        for key, value in spec.first_weights(seed, name).items():
            own[key].copy_(torch.from_numpy(value))
    return module


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
