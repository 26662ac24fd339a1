"""What ZeRO's stages keep where: the one place that knows DeepSpeed's optimizers from within (0.19)."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID, DeepSpeedZeroOptimizer
from torch import Tensor, nn

from dtrain.engines.zero.pieces import Piece

Names = Mapping[Any, str]  # of parameters, which DeepSpeed gives attributes of its own
HELD = "dtrain"  # among the ids of the modules for which a parameter stays gathered


class Stage(Protocol):
    """Where one of DeepSpeed's optimizers keeps this rank's pieces."""

    pieces: dict[str, Piece]  # of the parameters that are trained
    masters: list[Tensor]  # by group, the flat tensor of weights in full precision that the optimizer steps

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """After the last backward: this rank's pieces of the means, in the memory that the step reads."""
        ...

    def refresh(self) -> None:
        """Let the module compute with what the masters are now. Collective."""
        ...

    def clear(self) -> None:
        """Forget gradients that are not stepped."""
        ...

    def frozen(self, parameter: Any) -> Tensor:
        """What this rank has of a parameter that is not trained."""
        ...

    def piece(self, name: str, parameter: Any) -> Piece | None:
        """Which piece of a parameter this rank has, trained or not; None if it has the whole."""
        ...

    def release(self) -> None:
        """Let parameters go that stayed gathered for second derivatives."""
        ...


class Stretches:
    """Stages 1 and 2: the parameters of a group lie one after another, and are cut at equal lengths."""

    def __init__(self, optimizer: DeepSpeedZeroOptimizer, names: Names):
        self.optimizer = optimizer
        self.masters: list[Tensor] = optimizer.single_partition_of_fp32_groups
        self.pieces: dict[str, Piece] = {}
        self.names = names
        optimizer.scaled_global_norm = _no_norm  # where it is offloaded; else `configuration` sees to it
        for group, parameters in enumerate(optimizer.bit16_groups):
            start = 0
            inside = {id(parameter) for parameter in optimizer.params_in_partition[group]}
            for parameter in parameters:
                first = count = 0
                if id(parameter) in inside:
                    first = optimizer.first_offset[group] if start == 0 else 0
                    count = min(parameter.numel() - first, optimizer.partition_size[group] - start)
                self.pieces[names[parameter]] = Piece(tuple(parameter.shape), group, start, first, count)
                start += count

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        optimizer = self.optimizer
        if optimizer.cpu_offload:
            optimizer._wait_for_offload_copies()
        for group, parameters in enumerate(optimizer.params_in_partition):
            for number, parameter in enumerate(parameters):
                name = self.names[parameter]
                if optimizer.cpu_offload:
                    yield name, self.pieces[name].of(_gradient(self.masters[group]))
                else:
                    yield name, optimizer.averaged_gradients[group][number]

    def refresh(self) -> None:
        self.optimizer.update_lp_params()

    def clear(self) -> None:
        optimizer = self.optimizer
        optimizer.zero_grad()
        optimizer.micro_step_id = INITIAL_MICRO_STEP_ID
        optimizer.averaged_gradients = dict.fromkeys(optimizer.averaged_gradients)
        optimizer.all_grad_tensors = dict.fromkeys(optimizer.all_grad_tensors)
        if optimizer.cpu_offload:
            optimizer.reset_cpu_buffers()
            optimizer._offload_accumulated_param_ids = set()

    def frozen(self, parameter: Any) -> Tensor:
        own: Tensor = parameter.detach()
        return own

    def piece(self, name: str, parameter: Any) -> Piece | None:
        return self.pieces.get(name)

    def release(self) -> None:
        """Parameters are whole."""


class Slices:
    """Stage 3: every parameter is cut into equal slices, the last of them filled up with zeros."""

    def __init__(self, optimizer: DeepSpeedZeroOptimizer_Stage3, names: Names):
        self.optimizer = optimizer
        self.masters: list[Tensor] = optimizer.fp32_partitioned_groups_flat
        self.pieces: dict[str, Piece] = {}
        self.names = names
        self.parameters: list[Any] = list(names)
        self.holds = False
        optimizer._get_norm_groups = lambda: [_no_norm()]
        for group, parameters in enumerate(optimizer.fp16_groups):
            start = 0
            for parameter in parameters:
                self.pieces[names[parameter]] = slice_of(parameter, group, start)
                start += parameter.partition_numel()
        self._hold_for_second_derivatives()

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        for group, parameters in enumerate(self.optimizer.fp16_groups):
            for number, parameter in enumerate(parameters):
                name = self.names[parameter]
                piece = self.pieces[name]
                if not piece.count:
                    continue
                if self.optimizer.offload_optimizer:
                    yield name, piece.of(_gradient(self.masters[group]))
                else:
                    yield name, self.optimizer.averaged_gradients[group][number].narrow(0, 0, piece.count)

    @torch.no_grad()
    def refresh(self) -> None:
        optimizer = self.optimizer
        optimizer._partition_all_parameters()
        for group in range(len(self.masters)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)

    def clear(self) -> None:
        optimizer = self.optimizer
        optimizer.zero_grad()
        optimizer.averaged_gradients = {}
        if optimizer.offload_optimizer:
            optimizer.reset_cpu_buffers()
        optimizer._offload_boundary_param_ids = set()

    def frozen(self, parameter: Any) -> Tensor:
        own: Tensor = parameter.ds_tensor.detach()
        return own.narrow(0, 0, slice_of(parameter, 0, 0).count)

    def piece(self, name: str, parameter: Any) -> Piece | None:
        return self.pieces.get(name) or slice_of(parameter, 0, 0)

    def release(self) -> None:
        if self.holds:
            self.holds = False
            for parameter in self.parameters:
                parameter.ds_active_sub_modules.discard(HELD)
                if not parameter.ds_persist and parameter.ds_status.name == "AVAILABLE":
                    parameter.partition()

    def _hold_for_second_derivatives(self) -> None:
        """Where a backward is differentiated itself, keep gathered what it read, as its graph reads it again.

        DeepSpeed would let the parameters of a layer go after the first backward, and compute with nothing.
        """
        offload = self.optimizer.parameter_offload
        fetch = offload.pre_sub_module_backward_function

        def fetch_and_hold(module: nn.Module) -> None:
            fetch(module)
            if torch.is_grad_enabled():
                self.holds = True
                own: list[Any] = list(module.parameters(recurse=False))
                for parameter in own:
                    parameter.ds_active_sub_modules.add(HELD)

        offload.pre_sub_module_backward_function = fetch_and_hold


def _no_norm() -> Tensor:
    """In place of a norm that DeepSpeed would go by, to leave out updates: it is looked after outside."""
    return torch.zeros(())


def _gradient(flat: Tensor) -> Tensor:
    assert flat.grad is not None  # DeepSpeed made it with the optimizer
    return flat.grad


def slice_of(parameter: Any, group: int, start: int) -> Piece:
    """This rank's slice of a parameter, without what fills it up."""
    rank = torch.distributed.get_rank()
    size, whole = parameter.partition_numel(), parameter.ds_numel
    first = min(rank * size, whole)
    return Piece(tuple(parameter.ds_shape), group, start, first, min(size, whole - first))
