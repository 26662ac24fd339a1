"""A model that is whole on every rank, with its optimizer: all of it but how gradients go over the ranks."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dtrain.backends.torch_backend import trained_parameters
from dtrain.engines.held import Build, Named


class Whole(ABC):
    """What `Held` asks for, where parts are the tensors themselves."""

    is_split = False
    mean_over: int
    needs_rehearsal: bool
    wrapped: nn.Module

    def __init__(self, module: nn.Module, build: Build | None, device: torch.device):
        self.module = module.to(device)
        own = trained_parameters(module)  # what comes frozen, as a part of an imported model may, stays so
        self.is_trained = build is not None
        self.optimizer = None if build is None else build(own)
        self.trained = {} if build is None else own
        self.parameters = dict(module.named_parameters())

    @abstractmethod
    def accumulating(self, number: int, is_last: bool) -> AbstractContextManager[Any]: ...

    @abstractmethod
    def reduce(self) -> None: ...

    def train(self, on: bool) -> None:
        for parameter in self.trained.values():
            parameter.requires_grad_(on)

    def kept_whole(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def gradients(self) -> Named:
        return [(name, p.grad) for name, p in self.parameters.items() if p.grad is not None]

    def weights(self) -> Named:
        return [(name, parameter.detach()) for name, parameter in self.parameters.items()]

    def refresh(self) -> None:  # noqa: B027  # nothing is to be done in either
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
        self.trained, self.parameters = {}, {}
