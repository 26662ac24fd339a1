"""Models and their optimizers as a run begins: built, changed as a launch asks, and handed to the ranks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dtrain.backends.torch_backend import build_model, embeddings, first_weights, outlined
from dtrain.backends.torch_optimizers import build_optimizer
from dtrain.backends.torch_weights_file import begun
from dtrain.engines.activations import keep_less
from dtrain.engines.blocks import check_patterns
from dtrain.engines.compiling import Compiling
from dtrain.engines.held import Held, Hold
from dtrain.engines.precision import compute_in_full, in_full
from dtrain.engines.torch_state import NamedOptimizer
from dtrain.scale.tables import FSDP, Scale
from dtrain.spec.models import Model, ModelSpec, weights_of, without_beginning
from dtrain.spec.optimizers import Optimizer
from dtrain.spec.trust import Trust


@dataclass(frozen=True, kw_only=True)
class Site:
    """What models and optimizers are built by, besides what they are."""

    device: torch.device
    dtype: torch.dtype  # of weights
    is_half: bool  # whether models compute in half precision
    seed: int
    scale: Scale
    trust: Trust
    tells: Callable[[str], None]


def hold_models(
    hold: Hold, models: Mapping[str, Model], optimizers: Mapping[str, Optimizer], site: Site
) -> tuple[dict[str, Held], Compiling]:
    """Each model as the ranks keep it, in training mode if it is trained; and what is compiled of them.

    `site.tells` is called with what a model begins with, where that is the weights of a file.
    """
    outlines = {name for name, spec in models.items() if is_outlined(spec, site.scale)}
    modules = {
        name: (outlined if name in outlines else build_model)(name, spec, seed=site.seed, trust=site.trust)
        for name, spec in models.items()
    }
    for name, module in modules.items():
        if (source := weights_of(models[name])) is not None:
            site.tells(f"{name}: {begun(module, source)}")
    if isinstance(site.scale.engine, FSDP):
        check_patterns(site.scale.engine.blocks, modules, "engine.blocks")
    compiling = Compiling(site.scale.compile, modules, site.device)
    keep_less(modules, site.scale.activation_checkpointing)  # around what is compiled
    every: dict[str, Held] = {}
    for name, module in modules.items():
        module.to(site.dtype)
        if site.is_half and models[name].precision is not None:
            compute_in_full(module, site.device)
        elif site.is_half:  # losses are computed in full from what models give in half
            module.register_forward_hook(in_full)
        module.train(name in optimizers)
        build = None
        if name in optimizers:
            build = partial(named_optimizer, name, optimizers[name], embeddings(module), site)
        every[name] = hold(name, module, build)
        if name in outlines:
            fill(every[name], name, models[name], site.seed)
    return every, compiling


def is_outlined(spec: Model, scale: Scale) -> bool:
    """Whether a model is cut before it has any memory: each rank then never holds more than its parts.

    What is imported, or comes from a checkpoint or a file, is whole on each rank at first.
    """
    is_own = isinstance(spec, ModelSpec) and not spec.imports_layers and spec == without_beginning(spec)
    return is_own and isinstance(scale.engine, FSDP)


@torch.no_grad()
def fill(held: Held, name: str, spec: Model, seed: int) -> None:
    """Give the parts of a model their first weights, a whole parameter at a time."""
    parts = dict(held.weights())
    for key, value in first_weights(name, spec, seed):
        parts[key].copy_(held.part(key, value))
    held.refresh()


def named_optimizer(
    name: str, spec: Optimizer, tables: set[str], site: Site, parameters: Mapping[str, Tensor]
) -> NamedOptimizer:
    """The optimizer of a model, for its parameters or parts of them; some are `tables` of embeddings."""
    form = site.scale.optimizer
    made = build_optimizer(name, spec, parameters, embeddings=tables, form=form, trust=site.trust)
    return NamedOptimizer(name, made, parameters, spec.lr)
