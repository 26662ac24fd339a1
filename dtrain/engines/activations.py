"""Activation checkpointing: layers whose forward is computed anew in the backward, with the same bits."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dtrain.backends.torch_backend import batch_norms
from dtrain.backends.torch_batch_norm import RecordingBatchNorm
from dtrain.engines.blocks import check_patterns, chosen
from dtrain.engines.statistics import loose_buffers
from dtrain.errors import LaunchError
from dtrain.scale.tables import Activations


def keep_less(models: Mapping[str, nn.Module], options: Activations | None) -> None:
    """Let the layers that a launch names be computed anew, in place. Raises LaunchError for one of none."""
    if options is None:
        return
    check_patterns(options.layers, models, "activation_checkpointing.layers")
    layers = [layer for name, own in models.items() for layer in chosen(name, own, options.layers).values()]
    if not layers:
        said = "no model has repeated layers that are made of several"
        raise LaunchError(f'activation_checkpointing: {said}; say which: layers = ["3", "generator/4.*"]')
    for layer in layers:
        compute_anew(layer)


def compute_anew(layer: nn.Module) -> None:
    """Let a layer keep nothing but its inputs for the backward. What it is called by stays as it was.

    Its forward is computed once more then, with the same draws and under the same autocast, which torch sees
    to; and so that nothing else notices, which we do.
    """
    layer.forward = Anew(layer.forward, batch_norms(layer), loose_buffers(layer))


class Anew:
    """A forward that keeps its inputs alone, and is computed anew where the backward asks."""

    def __init__(
        self,
        forward: Callable[..., Any],
        norms: Sequence[RecordingBatchNorm],
        loose: Sequence[Tensor],
    ):
        self.forward = forward
        self.norms = norms
        self.loose = loose  # buffers that the forward may move

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():  # nothing is kept anyway
            return self.forward(*inputs, **options)
        return checkpoint(self.forward, *inputs, use_reentrant=False, context_fn=self._contexts, **options)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """What surrounds the first forward, and those anew."""
        return nullcontext(), Unnoticed(self.norms, self.loose)


class Unnoticed:
    """Inside, statistics are not noted again, and buffers are as they were when this was made.

    It is entered as often as a forward is computed anew: for each slope of a slope once more.
    """

    def __init__(self, norms: Sequence[RecordingBatchNorm], loose: Sequence[Tensor]):
        self.norms = norms
        self.before = [(buffer, buffer._version, buffer.clone()) for buffer in loose]

    def __enter__(self) -> None:
        self.notes = [norm.notes for norm in self.norms]
        # What nobody has written to since stays alone: autograd may hold it, and would complain.
        moved = [(buffer, old) for buffer, version, old in self.before if buffer._version != version]
        self.latest = [(buffer, buffer.clone()) for buffer, _ in moved]
        copy(moved)
        for norm in self.norms:
            norm.notes = []

    def __exit__(self, *problem: Any) -> None:
        for norm, notes in zip(self.norms, self.notes, strict=True):
            norm.notes = notes
        copy(self.latest)


@torch.no_grad()
def copy(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copy what is second into what is first."""
    for to, values in pairs:
        to.copy_(values)
