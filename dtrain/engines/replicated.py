"""A model that is whole on every rank: of one process, or under DistributedDataParallel."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from dtrain.engines.held import Build
from dtrain.engines.whole import Whole
from dtrain.errors import LaunchError
from dtrain.scale.tables import DDP


class Replicated(Whole):
    """The module itself; where it is trained on several ranks, DDP averages its gradients."""

    def __init__(
        self, name: str, module: nn.Module, build: Build | None, accelerator: Accelerator, options: DDP
    ):
        super().__init__(module, build, accelerator.device)
        self.mean_over = accelerator.num_processes
        # Alone it would do nothing, in a second.
        needs_it = build is not None and accelerator.num_processes > 1
        self.wrapped = in_parallel(self.module, accelerator.device, options) if needs_it else self.module
        # DDP puts gradients into other buckets after the first backward, and the sum over three ranks or more
        # depends on their order there: a run that is carried on would part from one left alone by a rounding.
        self.needs_rehearsal = needs_it and accelerator.num_processes > 2

    def accumulating(self, number: int, is_last: bool) -> AbstractContextManager[Any]:
        if is_last or self.wrapped is self.module:
            return nullcontext()
        assert isinstance(self.wrapped, DistributedDataParallel)
        return self.wrapped.no_sync()

    def reduce(self) -> None:
        """DDP has done it in the last backward."""


def in_parallel(module: nn.Module, device: torch.device, options: DDP) -> DistributedDataParallel:
    """A module whose gradients are means over the ranks at the end of a backward.

    Raises LaunchError where torch lacks the compression on this device.
    """
    if options.compression == "bf16" and device.type == "cpu":
        said = 'torch sends bf16 between GPUs alone; "fp16" would do'
        raise LaunchError(f"engine.compression: {said}")
    wrapped = DistributedDataParallel(
        module,
        device_ids=[device] if device.type == "cuda" else None,
        # Two forwards of a model with buffers before one backward otherwise raise the in-place error.
        broadcast_buffers=False,
        bucket_cap_mb=options.bucket_mb,
        gradient_as_bucket_view=options.gradient_as_bucket_view,
    )
    match options.compression:
        case "fp16":
            wrapped.register_comm_hook(None, fp16_compress_hook)
        case "bf16":
            wrapped.register_comm_hook(None, bf16_compress_hook)
        case "powersgd":
            state = PowerSGDState(None, options.powersgd_rank, options.powersgd_after)
            wrapped.register_comm_hook(state, powerSGD_hook)
    return wrapped
