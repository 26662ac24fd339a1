"""Lion, which torch has not."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Lion(torch.optim.Optimizer):
    """Steps of one size in every number, by the sign of a mean of gradients; weight decay is decoupled.

    Keeps one tensor a parameter, `exp_avg`. Source: Chen et al. 2023 (arXiv:2302.06675), algorithm 2.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient. The loss is never evaluated again."""
        assert closure is None
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not moved:
                continue
            gradients = [parameter.grad for parameter in moved]
            for parameter in moved:
                if not self.state[parameter]:
                    self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
            means = [self.state[parameter]["exp_avg"] for parameter in moved]
            in_step, kept = group["betas"]
            steps = torch._foreach_lerp(means, gradients, 1 - in_step)
            torch._foreach_sign_(steps)
            torch._foreach_mul_(moved, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(moved, steps, alpha=-group["lr"])
            torch._foreach_lerp_(means, gradients, 1 - kept)
