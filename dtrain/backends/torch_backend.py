"""Specs as torch modules and optimizers."""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dtrain.backends.torch_batch_norm import RecordingBatchNorm, record_batch_norms
from dtrain.backends.torch_layers import stack
from dtrain.errors import RecipeError
from dtrain.spec.imports import find
from dtrain.spec.keys import seed_of
from dtrain.spec.models import Model, ModelSpec
from dtrain.spec.optimizers import SGD, Adam, AdamW, ImportedOptimizer, Optimizer

CLASSES: dict[type[Optimizer], Callable[..., torch.optim.Optimizer]] = {
    SGD: torch.optim.SGD,
    Adam: torch.optim.Adam,
    AdamW: torch.optim.AdamW,
}
FUSED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMMON = {"lr", "clip", "schedule"}


def build_model(name: str, spec: Model, *, seed: int, trust: Sequence[str] | None = None) -> nn.Module:
    """Build a model on the CPU with its first weights, float32.

    Raises RecipeError if an imported one cannot be had; for `trust` see `spec.imports.find`.
    """
    if isinstance(spec, ModelSpec):
        module: nn.Module = stack(spec.layers, spec.input)
        own = dict(module.named_parameters())
        with torch.no_grad():
            for key, value in spec.first_weights(seed, name).items():
                own[key].copy_(torch.from_numpy(value))
        return module
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed, "weights", name))
        try:
            module = find(spec.path, nn.Module, trust)(**spec.arguments)
        except Exception as error:  # the class is the user's
            raise RecipeError(f"models.{name}", f"{spec.path}: {error}") from error
    if not isinstance(module, nn.Module):
        raise RecipeError(
            f"models.{name}.kind", f"{spec.path} makes a {type(module).__name__}, not a torch module"
        )
    return record_batch_norms(module)


def build_optimizer(name: str, spec: Optimizer, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """Build an optimizer, fused where torch has it. Raises RecipeError if an imported one cannot be had."""
    if isinstance(spec, ImportedOptimizer):
        try:
            cls = find(spec.path, torch.optim.Optimizer)
            made: torch.optim.Optimizer = cls(parameters, lr=spec.lr, **spec.arguments)
        except Exception as error:  # the class is the user's
            raise RecipeError(f"optimizers.{name}", f"{spec.path}: {error}") from error
        return made
    options = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec) if f.name not in COMMON}
    is_fusible = all(p.dtype in FUSED and p.device.type in ("cpu", "cuda") for p in parameters)
    return CLASSES[type(spec)](parameters, lr=spec.lr, fused=is_fusible, **options)


def batch_norms(module: nn.Module) -> list[RecordingBatchNorm]:
    """The batch normalisations inside a model, in order."""
    return [child for child in module.modules() if isinstance(child, RecordingBatchNorm)]


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Everything of a model that a checkpoint holds: parameters and persistent buffers, each once."""
    state = module.state_dict(keep_vars=True)
    kept = {id(tensor) for tensor in state.values()}
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    return {name: tensor for name, tensor in tensors.items() if id(tensor) in kept}
