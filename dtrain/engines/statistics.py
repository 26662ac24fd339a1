"""What a forward pass moves besides gradients, kept the same on any number of ranks."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dtrain.backends.torch_backend import batch_norms
from dtrain.backends.torch_batch_norm import RecordingBatchNorm

IDLE = -1  # stands for the number of a micro-batch without weight
Notes = list[list[Tensor]]  # of each normalisation, the statistics of each batch: (2, channels)
Values = Mapping[str, Sequence[Tensor]]  # of each model, copies of the buffers that its forward may move


class Statistics:
    """What the forwards of models move: what batch normalisations note, and the buffers of imported models.

    Every micro-batch starts from the buffers before the update, and those that micro-batch 0 leaves stay,
    in the updated models: so they are the same for any size of micro-batches and number of ranks.
    """

    def __init__(self, modules: Mapping[str, nn.Module], accelerator: Accelerator):
        self.accelerator = accelerator
        self.norms = {name: batch_norms(module) for name, module in modules.items()}
        self.loose = {name: loose_buffers(module) for name, module in modules.items()}

    def take(self, names: Sequence[str]) -> Notes:
        """What the normalisations of these models noted in one micro-batch; all forget it."""
        taken = take_notes(self._norms(names))
        self.forget()
        return taken

    def forget(self) -> None:
        """Let go of what all normalisations noted."""
        take_notes(self._norms(self.norms))

    def values(self) -> Values:
        """Copies of the buffers as they are now."""
        return {name: [buffer.clone() for buffer in own] for name, own in self.loose.items() if own}

    def put_back(self, values: Values) -> None:
        """Give the buffers these values."""
        for name, own in values.items():
            torch._foreach_copy_(self.loose[name], list(own))

    def settle(
        self,
        names: Sequence[str],
        notes: Mapping[int, Notes],
        micro_batches: int,
        before: Values,
        after: Values,
    ) -> None:
        """Let these models have what the micro-batches of all ranks noted, and rank 0's buffers `after`.

        Other models have theirs from `before`. Collective.
        """
        average_notes(self._norms(names), notes, micro_batches, self.accelerator)
        self.put_back({**before, **{name: after[name] for name in names if name in after}})
        if self.accelerator.num_processes > 1:
            for buffer in (buffer for name in names for buffer in self.loose[name]):
                torch.distributed.broadcast(buffer, 0)

    def clear(self) -> None:
        self.norms.clear()
        self.loose.clear()

    def _norms(self, names: Iterable[str]) -> list[RecordingBatchNorm]:
        return [norm for name in names for norm in self.norms[name]]


def take_notes(norms: Sequence[RecordingBatchNorm]) -> Notes:
    """What the normalisations noted in one micro-batch; they forget it."""
    taken = [norm.notes for norm in norms]
    for norm in norms:
        norm.notes = []
    return taken


def average_notes(
    norms: Sequence[RecordingBatchNorm],
    notes: Mapping[int, Notes],
    micro_batches: int,
    accelerator: Accelerator,
) -> None:
    """Take in the statistics of every micro-batch of every rank, in the micro-batches' order.

    `notes` holds this rank's, by the number of the micro-batch; rank r has those equal to r modulo
    the world, so ranks short of one send zeros that nobody reads.
    """
    if not norms:
        return
    counts = [len(of_norm) for of_norm in next(iter(notes.values()))]
    rows = {
        number: torch.cat([n.flatten() for of_norm in taken for n in of_norm])
        for number, taken in notes.items()
    }
    blank = torch.zeros_like(next(iter(rows.values())))
    rows.pop(IDLE, None)
    world = accelerator.num_processes
    if world > 1:
        each = -(-micro_batches // world)
        own = [rows[n] for n in sorted(rows)] + [blank] * (each - len(rows))
        gathered = accelerator.gather(torch.stack(own))  # (world * each, values)
        rows = {number: gathered[number % world * each + number // world] for number in range(micro_batches)}
    for number in range(micro_batches):
        values = rows[number]
        for norm, count in zip(norms, counts, strict=True):
            for _ in range(count):
                note, values = values[: 2 * norm.num_features], values[2 * norm.num_features :]
                norm.take_in(note.view(2, -1))


def loose_buffers(module: nn.Module) -> list[Tensor]:
    """Buffers of an imported model that its forward may move: all but those of batch normalisations."""
    own = {
        id(b) for m in module.modules() if isinstance(m, RecordingBatchNorm) for b in m.buffers(recurse=False)
    }
    return [buffer for buffer in module.buffers() if id(buffer) not in own]
