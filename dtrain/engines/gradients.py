"""What an update does with gradients, be they whole on every rank or parts of them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def rescale(gradients: Sequence[Tensor], factor: Tensor | float) -> None:
    """Multiply them in place."""
    if gradients and (isinstance(factor, Tensor) or factor != 1):
        if isinstance(factor, Tensor):
            factor = factor.to(gradients[0].device)  # which may be offloaded
        torch._foreach_mul_(list(gradients), factor)


def total_norm(gradients: Sequence[Tensor], total: Callable[[Tensor], Tensor] | None) -> Tensor:
    """The global norm; where they are parts, `total` sums a number over the ranks."""
    norm = nn.utils.get_total_norm(list(gradients))
    return norm if total is None else total(norm.double().square()).sqrt().to(norm.dtype)


def clip_values(gradients: Sequence[Tensor], highest: float | None) -> None:
    """Bound each number in size, in place."""
    if highest is not None and gradients:
        torch._foreach_clamp_min_(list(gradients), -highest)
        torch._foreach_clamp_max_(list(gradients), highest)


def clip_norm(gradients: Sequence[Tensor], longest: float, norm: Tensor) -> None:
    """Shorten them in place, where their global norm is above `longest`."""
    rescale(gradients, torch.clamp(longest / (norm + 1e-6), max=1.0))  # as nn.utils.clip_grads_with_norm_
