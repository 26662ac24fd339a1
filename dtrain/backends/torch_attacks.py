"""Slopes in the input, and attacks that climb them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Where nothing is turned into half precision, as models are."""
    has_half = torch.amp.is_autocast_available(device.type)  # shapes alone have not
    return torch.autocast(device.type, enabled=False) if has_half else nullcontext()


def slope_of(function: Function, x: Tensor, *, differentiable: bool = False) -> Tensor:
    """Slope of sum(function(x)) in x, of the shape of x, also where gradients are off, as in evaluation.

    A `differentiable` one can be part of a loss.
    """
    # Slopes of half-precision outputs vanish or overflow: they are computed in full.
    with torch.enable_grad(), full_precision(x.device):
        x = x.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(function(x).sum(), x, create_graph=differentiable)
    return slope


def climb(
    function: Function,
    x: Tensor,
    *,
    eps: float,
    steps: int,
    size: float,
    low: float,
    high: float,
    is_euclidean: bool,
    random_start: bool,
) -> Tensor:
    """Projected gradient ascent of `function` within eps of each example of x, (N, ...), and low to high.

    Source: Madry et al. 2017 (arXiv:1706.06083).
    """
    moved = x
    if random_start:
        moved = (x + _drawn(x, eps, is_euclidean)).clamp(low, high)
    for _ in range(steps):
        slope = slope_of(function, moved)
        if is_euclidean:
            away = moved + size * slope / _length(slope).clamp_min(1e-12) - x
            away = away * (eps / _length(away).clamp_min(1e-12)).clamp_max(1)
        else:
            away = (moved + size * slope.sign() - x).clamp(-eps, eps)
        moved = (x + away).clamp(low, high)
    return moved.detach()


def _drawn(x: Tensor, eps: float, is_euclidean: bool) -> Tensor:
    """Uniform in the cube of half-width eps, or in the ball of radius eps."""
    if not is_euclidean:
        return torch.empty_like(x).uniform_(-eps, eps)
    direction = torch.randn_like(x)
    radius = torch.rand(len(x), *(1,) * (x.ndim - 1), device=x.device, dtype=x.dtype)
    return eps * radius ** (1 / x[0].numel()) * direction / _length(direction)


def _length(x: Tensor) -> Tensor:
    """Euclidean length of each example, (N, 1, ...)."""
    length: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return length.view(-1, *(1,) * (x.ndim - 1))
