"""What a forward pass moves besides gradients, kept the same on any number of ranks."""

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dtrain.backends.torch_batch_norm import RecordingBatchNorm

IDLE = -1  # stands for the number of a micro-batch without weight
Notes = list[list[Tensor]]  # of each normalisation, the statistics of each batch: (2, channels)


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
