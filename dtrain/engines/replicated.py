"""A model that is whole on every rank: of one process, or under DistributedDataParallel."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from accelerate import Accelerator
from torch import nn

from dtrain.engines.held import Build
from dtrain.engines.whole import Whole


class Replicated(Whole):
    """The module itself; where it is trained on several ranks, DDP averages its gradients."""

    def __init__(self, module: nn.Module, build: Build | None, accelerator: Accelerator):
        super().__init__(module, build, accelerator.device)
        self.accelerator = accelerator
        self.mean_over = accelerator.num_processes
        # Alone it would do nothing, in a second.
        needs_it = build is not None and accelerator.num_processes > 1
        self.wrapped = accelerator.prepare_model(module) if needs_it else self.module
        # DDP puts gradients into other buckets after the first backward, and the sum over three ranks or more
        # depends on their order there: a run that is carried on would part from one left alone by a rounding.
        self.needs_rehearsal = needs_it and accelerator.num_processes > 2

    def accumulating(self, number: int, is_last: bool) -> AbstractContextManager[Any]:
        if is_last or self.wrapped is self.module:
            return nullcontext()
        context: AbstractContextManager[Any] = self.accelerator.no_sync(self.wrapped)
        return context

    def reduce(self) -> None:
        """DDP has done it in the last backward."""
