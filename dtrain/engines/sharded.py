"""A model of which every rank has a part: FSDP2, torch's `fully_shard`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, Shard

from dtrain.backends.torch_backend import allocate, batch_norms, trained_parameters
from dtrain.backends.torch_batch_norm import RecordingBatchNorm
from dtrain.engines.blocks import chosen
from dtrain.engines.elementwise import check_elementwise
from dtrain.engines.held import Build, Named
from dtrain.errors import LaunchError
from dtrain.scale.tables import FSDP

LARGE = 1_000_000  # parameters


class Sharded:
    """Its parameters are cut along their first axis, and are whole only while a block computes with them.

    The optimizer steps this rank's parts, as plain tensors. Source: Zhao et al. 2023 (arXiv:2304.11277), and
    torch's own design of the second version.
    """

    is_split = True
    needs_rehearsal = False

    def __init__(self, name: str, module: nn.Module, build: Build | None, mesh: DeviceMesh, options: FSDP):
        trained = list(trained_parameters(module))
        is_outline = any(parameter.is_meta for parameter in module.parameters())
        shard(name, module, mesh, options)
        if is_outline:
            allocate(module, torch.device("cpu" if options.offload else mesh.device_type))
            buffers_to(module, torch.device(mesh.device_type))
        self.module = self.wrapped = module
        assert isinstance(module, FSDPModule)  # fully_shard has made it one
        self.root: FSDPModule = module
        # Now, while weights may be trained: FSDP asks in which precision gradients go when it is first
        # called, and has no answer for a model that is frozen then (torch 2.13).
        module._get_fsdp_state()._lazy_init()
        self.mesh = mesh
        self.mean_over = mesh.size()
        self.options = options
        self.parameters: dict[str, DTensor] = dict(module.named_parameters())  # type: ignore[arg-type]  # fully_shard has cut them
        self.trained = [self.parameters[name] for name in trained] if build is not None else []
        self.parts = {name: local(parameter).detach() for name, parameter in self.parameters.items()}
        own = {name: self.parts[name] for name in trained}
        self.is_trained = build is not None
        self.optimizer = None if build is None else build(own)
        if self.optimizer is not None:
            check_elementwise(self.optimizer.model, self.optimizer.optimizer, "FSDP")

    def train(self, on: bool) -> None:
        self._reshard()  # what is whole at the moment would go by what was said before
        for parameter in self.trained:
            parameter.requires_grad_(on)

    def accumulating(self, number: int, is_last: bool) -> AbstractContextManager[Any]:
        if self.options.accumulate == "whole":
            self.root.set_requires_gradient_sync(is_last)
        return nullcontext()

    @contextmanager
    def kept_whole(self) -> Iterator[None]:
        """A backward through a backward needs weights that FSDP would have let go of after the first.

        So they and their gradients are whole until its end; then the gradients are averaged and cut here.
        """
        if self.options.half_parameters:  # FSDP takes gradients in bf16 away from the whole weights
            raise LaunchError(
                "engine.half_parameters: FSDP has no slope of a slope (a gradient penalty, R1) through "
                "weights in bf16; without it this would do"
            )
        self._reshards(False)
        for cut in self._cut():
            cut.unshard()
        yield
        self._take(dict(self.module.named_parameters()))  # the whole ones, as long as they are
        self._reshards(True)
        self._reshard()

    def _reshards(self, on: bool) -> None:
        """Let FSDP cut weights and gradients by itself, or not."""
        for cut in self._cut():
            cut.set_reshard_after_forward(on and self.options.reshard, recurse=False)
            cut.set_reshard_after_backward(on, recurse=False)
            cut.set_requires_gradient_sync(on, recurse=False)

    def _take(self, whole: Mapping[str, Tensor]) -> None:
        """Add to the gradients this rank's parts of the means over the ranks of whole ones."""
        named = [(name, each.grad) for name, each in whole.items() if each.grad is not None]
        if not named:
            return
        flat = torch.cat([gradient.reshape(-1) for _, gradient in named])
        dist.all_reduce(flat, group=self.mesh.get_group())
        means = torch.split(flat / self.mesh.size(), [gradient.numel() for _, gradient in named])
        for (name, gradient), mean in zip(named, means, strict=True):
            like = self.parameters[name]
            if like.grad is None:
                like.grad = torch.zeros_like(like)  # where the weight is, which may be offloaded
            local(like.grad).add_(self.part(name, mean.view_as(gradient)).to(like.device))
            whole[name].grad = None

    def reduce(self) -> None:
        """It was done in the backward of each block."""

    def gradients(self) -> Named:
        return [(n, local(p.grad)) for n, p in self.parameters.items() if p.grad is not None]

    def weights(self) -> Named:
        return list(self.parts.items())

    def refresh(self) -> None:
        """Blocks gather these parts when they compute; one that is whole would not."""
        self._reshard()

    def step(self, settings: Mapping[str, Any]) -> None:
        assert self.optimizer is not None
        self.optimizer.set(settings)
        for name, gradient in self.gradients():
            self.parts[name].grad = gradient
        self.optimizer.step()
        for part in self.parts.values():
            part.grad = None

    def clear(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def size(self, name: str, part: Tensor) -> int:
        return self.parameters[name].numel() * part.itemsize if self._is_part(name, part) else part.nbytes

    def whole(self, name: str, part: Tensor) -> Tensor:
        if not self._is_part(name, part):
            return part
        return self._cut_like(name, part).full_tensor()

    def part(self, name: str, whole: Tensor) -> Tensor:
        if tuple(whole.shape) != self.shape(name):
            return whole
        pieces = whole.chunk(self.mesh.size())
        rank = self.mesh.get_local_rank()
        return pieces[rank] if rank < len(pieces) else whole[:0]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.parameters[name].shape)

    def state(self) -> Iterator[tuple[str, str, Any]]:
        return iter(()) if self.optimizer is None else self.optimizer.state()

    def restore(self, state: Mapping[str, dict[str, Any]]) -> None:
        assert self.optimizer is not None
        own = {name: {key: self._own(name, v) for key, v in each.items()} for name, each in state.items()}
        self.optimizer.restore(own)

    def _own(self, name: str, value: Any) -> Any:
        """This rank's part of a value of the optimizer's state."""
        return self.part(name, value) if isinstance(value, Tensor) and name in self.parts else value

    def close(self) -> None:
        del self.wrapped, self.module, self.root, self.optimizer
        self.trained, self.parameters, self.parts = [], {}, {}

    def _is_part(self, name: str, tensor: Tensor) -> bool:
        """Whether a tensor is cut as the parameter is; a number, such as of the steps, is not."""
        return name in self.parts and tensor.ndim > 0 and tensor.shape == self.parts[name].shape

    def _cut_like(self, name: str, part: Tensor) -> DTensor:
        """The tensor, cut as the parameter is, of which this rank has a part."""
        like = self.parameters[name]
        return DTensor.from_local(
            part, self.mesh, [Shard(0)], run_check=False, shape=like.shape, stride=like.stride()
        )

    def _cut(self) -> list[FSDPModule]:
        """The blocks that are cut by themselves."""
        return [module for module in self.module.modules() if isinstance(module, FSDPModule)]

    def _reshard(self) -> None:
        for cut in self._cut():
            cut.reshard()


def buffers_to(module: nn.Module, device: torch.device) -> None:
    """Move what is computed with and never cut: it is not offloaded."""
    for child in module.modules():
        for name, buffer in child.named_buffers(recurse=False):
            setattr(child, name, buffer.to(device))


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that is cut."""
    assert isinstance(tensor, DTensor)
    return tensor.to_local()


def shard(model: str, module: nn.Module, mesh: DeviceMesh, options: FSDP) -> None:
    """Cut a module in place: each block by itself, and what is left as one more."""
    full = MixedPrecisionPolicy()
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    is_elsewhere = options.offload and mesh.device_type != "cpu"  # on a CPU they are there already
    offload = CPUOffloadPolicy() if is_elsewhere else OffloadPolicy()
    cut = blocks(model, module, options.blocks)
    # Batch normalisations have no bf16 weights beside statistics in fp32, so they are blocks of their own.
    for block in [*(batch_norms(module) if options.half_parameters else ()), *reversed(cut), module]:
        block.register_forward_hook(of_its_own)
        fully_shard(
            block,
            mesh=mesh,
            reshard_after_forward=options.reshard,
            mp_policy=half if options.half_parameters and not isinstance(block, RecordingBatchNorm) else full,
            offload_policy=offload,
        )
    made: list[FSDPModule] = [block for block in cut if isinstance(block, FSDPModule)]  # all are by now
    for number, block in enumerate(made if options.prefetch else ()):
        block.set_modules_to_forward_prefetch(made[number + 1 : number + 1 + options.prefetch])
        block.set_modules_to_backward_prefetch(made[max(number - options.prefetch, 0) : number][::-1])


def of_its_own(module: nn.Module, inputs: Any, output: Any) -> Any:
    """What a block gives, in memory of its own: a forward hook.

    FSDP hangs the gathering for the backward on it, and loses that where a view is changed in place (torch
    2.13 warns of every view).
    """
    is_view = isinstance(output, Tensor) and output._is_view()
    return output.clone() if is_view else output


def blocks(model: str, module: nn.Module, patterns: Sequence[str] | None) -> list[nn.Module]:
    """The parts of a module that are gathered by themselves, in order.

    Those whose names match a pattern; without patterns, the repeated ones that are made of several layers,
    as the blocks of a transformer are, and other layers that are large.
    """
    found = chosen(model, module, patterns)
    if patterns is None:
        inside = {id(child) for block in found.values() for child in block.modules()}
        found |= {
            name: child
            for name, child in module.named_modules()
            if name and id(child) not in inside and is_large(child)
        }
    order = {name: place for place, (name, _) in enumerate(module.named_modules())}
    return [found[name] for name in sorted(found, key=order.__getitem__)]


def is_large(module: nn.Module) -> bool:
    """Whether a layer is worth gathering by itself, what is inside it left out."""
    return sum(parameter.numel() for parameter in module.parameters(recurse=False)) >= LARGE
