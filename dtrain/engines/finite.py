"""Which update first showed numbers that are not finite, found without waiting for a device at each of them.

On a GPU what an update showed is kept until somebody looks, and asked for in one go; on a CPU, which is never
waited for, it is looked at at once.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dtrain.engines.base import Fault
from dtrain.systems.base import Logs

Named = Sequence[tuple[str, Tensor]]  # gradients or weights by the names of parameters
Sums = Tensor | list[float]


def sums(tensors: Sequence[Tensor]) -> Sums:
    """A number for each tensor that is finite if and only if all of the tensor is, by one pass over it."""
    if not tensors or tensors[0].device.type == "cpu":
        return [tensor.sum().item() for tensor in tensors]  # a fifth of the time of a norm
    return torch.stack(torch._foreach_norm(list(tensors)))


@dataclass(frozen=True)
class Shown:
    """What one update showed on this rank, still on the device."""

    update: int
    losses: Mapping[int, Logs]  # by micro-batch: its "loss" and terms
    gradients: Mapping[str, tuple[Sequence[str], Sums]]  # by model: parameters, their `sums`

    def numbers(self) -> Iterable[Any]:
        """What must be finite. Terms need not be: what is none of the loss may be infinite, as a PSNR."""
        yield from (logs["loss"] for logs in self.losses.values())
        for _, found in self.gradients.values():
            yield from found if isinstance(found, list) else (found,)

    def fault(self) -> Fault | None:
        """What is not finite, first of all a loss; this asks the device number by number."""
        for micro_batch, logs in sorted(self.losses.items()):
            if not math.isfinite(float(logs["loss"])):
                values = {name: float(value) for name, value in logs.items()}
                return Fault(self.update, "loss", values, micro_batch=micro_batch)
        for model, (names, found) in self.gradients.items():
            if bad := not_finite(names, found):
                return Fault(self.update, "gradient", bad, model=model)
        return None


class Watch:
    """Remembers the first update that showed numbers which are not finite."""

    def __init__(self, device: torch.device):
        self.device = device
        self.first: Shown | None = None
        self.unseen: list[Shown] = []

    def note(self, update: int, losses: Mapping[int, Logs], models: Mapping[str, Named]) -> None:
        """Take in one update before its gradients go; what came before the first bad one need not be kept."""
        if self.first is None and not (self.device.type == "cpu" and surely_finite(losses, models)):
            self.unseen.append(Shown(update, losses, summed(models)))

    def look(self) -> Fault | None:
        """What the first bad update showed."""
        if self.first is None and not all_finite(self.unseen, self.device):
            self.first = next(shown for shown in self.unseen if shown.fault() is not None)
        self.unseen.clear()
        return None if self.first is None else self.first.fault()


def surely_finite(losses: Mapping[int, Logs], models: Mapping[str, Named]) -> bool:
    """The quick way on a CPU: whether one sum of all numbers is finite, and so are they."""
    total = sum([float(logs["loss"]) for logs in losses.values()])
    for gradients in models.values():
        total += sum([gradient.sum().item() for _, gradient in gradients])
    return math.isfinite(total)


def summed(models: Mapping[str, Named]) -> dict[str, tuple[list[str], Sums]]:
    """By model, the parameters that have gradients, and the `sums` of these."""
    return {
        model: ([name for name, _ in gradients], sums([gradient for _, gradient in gradients]))
        for model, gradients in models.items()
    }


def all_finite(several: Iterable[Shown], device: torch.device) -> bool:
    """Whether all numbers of some updates are finite: one wait for the device, whatever their number."""
    numbers = [number for shown in several for number in shown.numbers()]
    if device.type == "cpu":
        return all(math.isfinite(number) for number in numbers)
    flat = [torch.as_tensor(number, device=device).reshape(-1) for number in numbers]
    return not flat or bool(torch.cat(flat).isfinite().all())


def weights_fault(update: int, models: Mapping[str, Named]) -> Fault | None:
    """The first model with weights that are not finite: a step may overflow though its gradient did not."""
    for model, parameters in models.items():
        names = [name for name, _ in parameters]
        if bad := not_finite(names, sums([parameter for _, parameter in parameters])):
            return Fault(update, "weights", bad, model=model)
    return None


def not_finite(names: Sequence[str], found: Sums) -> dict[str, float]:
    """Those of some `sums` that are not finite, by name."""
    values = zip(names, found if isinstance(found, list) else found.tolist(), strict=True)
    return {name: value for name, value in values if not math.isfinite(value)}


def first_of(faults: Iterable[Mapping[str, Any] | None]) -> Fault | None:
    """The fault to tell of among those of all ranks: of the first update, a loss before what came of it.

    It is the same for any number of ranks, as micro-batches are numbered over all of them. Where each has
    parts of a gradient alone, what they found in it is put together.
    """
    found = [Fault(**fault) for fault in faults if fault is not None]
    if not found:
        return None
    first = min(found, key=_turn)
    alike = [fault for fault in found if _turn(fault) == _turn(first)]
    values = {name: value for fault in alike for name, value in fault.values.items()}
    return replace(first, values=values)


def _turn(fault: Fault) -> tuple[int, bool, int, str]:
    return (fault.update, fault.where != "loss", fault.micro_batch, fault.model)


def as_json(fault: Fault | None) -> dict[str, Any] | None:
    """The same as ranks tell it each other."""
    return None if fault is None else asdict(fault)
