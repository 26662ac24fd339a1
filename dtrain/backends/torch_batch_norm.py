"""Batch normalisation whose running statistics are the same on any number of processes."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RecordingBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation that notes the statistics of each batch instead of averaging them at once.

    The engine gathers the notes of all processes and averages them in the order of the
    micro-batches, so that the running statistics are the same on any number of processes.
    """

    def __init__(self, channels: int, eps: float, momentum: float | None, **options: Any):
        super().__init__(channels, eps, momentum, **options)
        self.notes: list[Tensor] = []  # (2, channels) each: mean and unbiased variance of one batch

    def _check_input_dim(self, input: Tensor) -> None:
        return None

    def forward(self, x: Tensor) -> Tensor:
        dtype = self.note_dtype(x)
        # Weights may be kept in half precision, statistics never: torch wants both to be alike.
        weight = None if self.weight is None else self.weight.to(dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, weight, bias, False, 0.0, self.eps)
        note = torch.zeros(2, self.num_features, dtype=dtype, device=x.device)
        # With a momentum of 1, torch writes the batch's own statistics where the running ones stand.
        out = F.batch_norm(x, note[0], note[1], weight, bias, True, 1.0, self.eps)
        self.notes.append(note)
        return out

    def note_dtype(self, x: Tensor) -> torch.dtype:
        """The precision in which statistics are kept: the module's own, else at least float32."""
        return self.running_mean.dtype if self.running_mean is not None else torch.float32

    @torch.no_grad()
    def take_in(self, note: Tensor) -> None:
        """Move the running statistics towards those of one batch."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(note[0].to(self.running_mean), share)
        self.running_var.lerp_(note[1].to(self.running_var), share)


def record_batch_norms(module: nn.Module) -> nn.Module:
    """Replace the batch normalisations of an imported module by recording ones, weights kept."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module if isinstance(module, RecordingBatchNorm) else _recording(module)
    for name, child in module.named_children():
        setattr(module, name, record_batch_norms(child))
    return module


def _recording(norm: nn.modules.batchnorm._BatchNorm) -> RecordingBatchNorm:
    options = {"affine": norm.affine, "track_running_stats": norm.track_running_stats}
    if norm.affine and norm.bias is None:
        options["bias"] = False
    own = RecordingBatchNorm(norm.num_features, norm.eps, norm.momentum, **options)
    own.load_state_dict(norm.state_dict())
    for name, parameter in norm.named_parameters():  # the very same ones: they may be frozen
        setattr(own, name, parameter)
    own.train(norm.training)
    return own
