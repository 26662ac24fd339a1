"""Specs as torch modules."""

import torch
from torch import Tensor, nn

from dtrain.backends.torch_batch_norm import RecordingBatchNorm
from dtrain.backends.torch_imported import Site, build_imported_model
from dtrain.backends.torch_layers import stack
from dtrain.spec.models import Model, ModelSpec
from dtrain.spec.trust import EVERYTHING, Trust


def build_model(name: str, spec: Model, *, seed: int, trust: Trust = EVERYTHING) -> nn.Module:
    """Build a model on the CPU with its first weights, float32.

    Raises RecipeError if it, or a layer of it, is imported and cannot be had.
    """
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


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Everything of a model that a checkpoint holds: parameters and persistent buffers, each once."""
    state = module.state_dict(keep_vars=True)
    kept = {id(tensor) for tensor in state.values()}
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    return {name: tensor for name, tensor in tensors.items() if id(tensor) in kept}
