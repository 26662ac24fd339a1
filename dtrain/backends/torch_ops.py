"""`Ops` for torch."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dtrain.backends.torch_measures import Measure, build_measure, measured
from dtrain.spec.table import Imported
from dtrain.spec.trust import EVERYTHING, Trust


class TorchOps:
    """Draws come from the device's default generator, which the engine seeds for every micro-batch."""

    def __init__(self, device: torch.device, dtype: torch.dtype, trust: Trust = EVERYTHING):
        self.device = device
        self.dtype = dtype
        self.trust = trust  # of what `call` may import
        self._measures: dict[str, Measure] = {}  # losses and metrics that were imported, by their keys

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, device=self.device, dtype=self.dtype)

    def relu(self, x: Tensor) -> Tensor:
        return F.relu(x)

    def softplus(self, x: Tensor) -> Tensor:
        return F.softplus(x)

    def cross_entropy(self, logits: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)

    def norm(self, x: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(x.reshape(len(x), -1), dim=1)
        return length

    def detach(self, x: Tensor) -> Tensor:
        return x.detach()

    def call(self, imported: Imported, prediction: Tensor, target: Tensor, *, at: str) -> Tensor:
        if at not in self._measures:
            self._measures[at] = build_measure(imported, self.device, self.dtype, at=at, trust=self.trust)
        return measured(self._measures[at], imported, prediction, target, at=at)

    def input_gradient(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        # Slopes of half-precision outputs vanish or overflow: penalties are computed in full.
        with torch.enable_grad(), torch.autocast(self.device.type, enabled=False):
            x = x.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
        return slope


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed what dropout and `Ops` draw from: the default generators of the CPU and of the device.

    torch.manual_seed does the same but takes 350 us where CUDA is not initialised, for a stack trace.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
