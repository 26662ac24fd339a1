"""Averages of weights, beside the models that they are averages of."""

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from dtrain.backends.torch_backend import batch_norms
from dtrain.backends.torch_weights import named_tensors
from dtrain.engines.statistics import loose_buffers
from dtrain.spec.averages import Average, ExponentialAverage, StochasticAverage


class Averages:
    """The averages by model. `counts` says how many updates each has seen, or steps taken in (`swa`)."""

    def __init__(self, specs: Mapping[str, Average], models: Mapping[str, nn.Module]):
        self.specs, self.own = dict(specs), dict(models)
        self.modules = {name: copy.deepcopy(models[name]).eval().requires_grad_(False) for name in specs}
        self.counts = dict.fromkeys(specs, 0)
        self.norms = {
            name: batch_norms(module) for name, module in self.modules.items() if self._is_equal(name)
        }
        for norm in (norm for norms in self.norms.values() for norm in norms):
            norm.momentum = None  # its statistics are plain means over batches
        self.moved: set[str] = set()  # since the last step
        self.stale: set[str] = set()  # whose statistics are those of other weights

    def _is_equal(self, name: str) -> bool:
        return isinstance(self.specs[name], StochasticAverage)

    def used(self) -> dict[str, nn.Module]:
        """Those that stand in for their models when these are evaluated and sampled."""
        self._follow()
        return {name: module for name, module in self.modules.items() if self.specs[name].evaluate}

    @torch.no_grad()  # or the averages would grow a graph, an update at a time
    def updated(self, names: Sequence[str]) -> None:
        """Take in the weights of models after an update."""
        for name in names:
            spec = self.specs.get(name)
            if spec is None:
                continue
            self.moved.add(name)
            if not isinstance(spec, ExponentialAverage):
                continue
            self.counts[name] += 1
            if self.counts[name] % spec.every == 0:
                kept = spec.share(self.counts[name] // spec.every - 1)
                torch._foreach_lerp_(*self._weights(name), 1 - kept)
            self._copy_buffers(name)

    @torch.no_grad()
    def stepped(self, step: int) -> None:
        """Take in the weights after a step, counted from 0, of those models that it moved."""
        for name in self.moved:
            spec = self.specs[name]
            if isinstance(spec, StochasticAverage) and spec.takes(step):
                torch._foreach_lerp_(*self._weights(name), 1 / (self.counts[name] + 1))
                self.counts[name] += 1
                self._copy_buffers(name)
                if self.norms[name]:
                    self.stale.add(name)
        self.moved.clear()

    def settled(self, name: str) -> None:
        """The statistics of an average were taken; what else a forward moves is its model's own."""
        self.stale.discard(name)
        own, moved = loose_buffers(self.own[name]), loose_buffers(self.modules[name])
        for average, buffer in zip(moved, own, strict=True):
            average.copy_(buffer)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that a checkpoint holds: of an equal average its statistics, too."""
        self._follow()
        for name, module in self.modules.items():
            held = named_tensors(module) if self._is_equal(name) else dict(module.named_parameters())
            for key, tensor in held.items():
                yield f"{name}/{key}", tensor.detach()

    def restore(self, counts: Mapping[str, int]) -> None:
        """Take up how far they had come; their tensors are there already."""
        self.counts |= {name: counts[name] for name in self.counts.keys() & counts.keys()}
        for name in self.modules:
            if not self._is_equal(name):
                self._copy_buffers(name)

    @torch.no_grad()
    def _follow(self) -> None:
        """Let equal averages that have not begun be their models themselves."""
        for name in self.norms:
            if not self.counts[name]:
                torch._foreach_copy_(*self._weights(name))
                self._copy_buffers(name)

    def _weights(self, name: str) -> tuple[list[Tensor], list[Tensor]]:
        return list(self.modules[name].parameters()), list(self.own[name].parameters())

    def _copy_buffers(self, name: str) -> None:
        """Averages are of weights alone: what else a model keeps is its own."""
        for average, own in zip(self.modules[name].buffers(), self.own[name].buffers(), strict=True):
            average.copy_(own)
