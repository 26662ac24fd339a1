"""A model that is whole on every rank: of one process, or under DistributedDataParallel."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from dtrain.backends.torch_backend import trained_parameters
from dtrain.engines.held import Build, Named


class Replicated:
    """The module itself; where it is trained on several ranks, DDP averages its gradients."""

    is_split = False

    def __init__(self, module: nn.Module, build: Build | None, accelerator: Accelerator):
        self.accelerator = accelerator
        self.module = self.wrapped = module.to(accelerator.device)
        own = trained_parameters(module)  # what comes frozen, as a part of an imported model may, stays so
        self.is_trained = build is not None
        self.optimizer = None if build is None else build(own)
        self.trained = [] if build is None else list(own.values())
        self.parameters = dict(module.named_parameters())
        if build is not None and accelerator.num_processes > 1:  # alone it would do nothing, in a second
            self.wrapped = accelerator.prepare_model(module)
        # DDP puts gradients into other buckets after the first backward, and the sum over three ranks or more
        # depends on their order there: a run that is carried on would part from one left alone by a rounding.
        self.needs_rehearsal = self.wrapped is not module and accelerator.num_processes > 2

    def train(self, on: bool) -> None:
        for parameter in self.trained:
            parameter.requires_grad_(on)

    def accumulating(self, is_last: bool) -> AbstractContextManager[Any]:
        if is_last or self.wrapped is self.module:
            return nullcontext()
        context: AbstractContextManager[Any] = self.accelerator.no_sync(self.wrapped)
        return context

    def kept_whole(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def reduce(self) -> None:
        """DDP has done it in the last backward."""

    def gradients(self) -> Named:
        return [(name, p.grad) for name, p in self.parameters.items() if p.grad is not None]

    def weights(self) -> Named:
        return [(name, parameter.detach()) for name, parameter in self.parameters.items()]

    def refresh(self) -> None:
        """The weights are what the module computes with."""

    def step(self, settings: Mapping[str, Any]) -> None:
        assert self.optimizer is not None
        self.optimizer.set(settings)
        self.optimizer.step()

    def clear(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def size(self, name: str, part: Tensor) -> int:
        return part.nbytes

    def whole(self, name: str, part: Tensor) -> Tensor:
        return part

    def part(self, name: str, whole: Tensor) -> Tensor:
        return whole

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.parameters[name].shape)

    def state(self) -> Iterator[tuple[str, str, Any]]:
        return iter(()) if self.optimizer is None else self.optimizer.state()

    def restore(self, state: Mapping[str, dict[str, Any]]) -> None:
        assert self.optimizer is not None
        self.optimizer.restore(state)

    def close(self) -> None:
        """DDP must end before the process group does."""
        del self.wrapped, self.module, self.optimizer
        self.trained, self.parameters = [], {}
