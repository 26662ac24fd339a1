"""Forward and backward of one micro-batch, through every model that its phase calls."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from dtrain.backends.torch_ops import DifferentiatedTwice, TorchOps, seed_generators
from dtrain.data.order import MicroBatch
from dtrain.engines.base import Update
from dtrain.engines.compiling import Compiling
from dtrain.engines.deterministic import refusing
from dtrain.engines.held import Held
from dtrain.engines.loss_scale import LossScale
from dtrain.engines.statistics import IDLE, Statistics, Values
from dtrain.spec.keys import seed_of
from dtrain.systems.base import Logs, Loss, Models, Ops, Phase

Prepare = Callable[[Models, Mapping[str, Any], Ops], Logs]


@dataclass(frozen=True)
class Turn:
    """One micro-batch's turn in an update."""

    update: Update
    micro: MicroBatch
    batch: Mapping[str, Tensor]
    before: Values  # the buffers that it starts from
    is_last: bool  # of those of this rank
    scale: LossScale | None


class Passes:
    """The losses of phases, called with models that train or stand still; gradients are added up in them."""

    def __init__(
        self,
        held: Mapping[str, Held],
        bare: Mapping[str, nn.Module],
        compiling: Compiling,
        ops: TorchOps,
        statistics: Statistics,
        half: torch.dtype | None,
        *,
        tells: bool,
    ):
        self.held = held
        self.bare = bare
        self.compiling = compiling
        self.ops = ops
        self.statistics = statistics
        self.half = half  # in which models compute
        self.tells = tells  # whether this rank says what is not compiled after all
        self.twice: set[str] = set()  # phases whose losses have slopes in them
        self.trainable: tuple[str, ...] = ()
        for each in held.values():
            each.module.requires_grad_(False)
            each.train(False)

    def train_only(self, names: tuple[str, ...]) -> None:
        """Let gradients reach the parameters of these models and of no others."""
        if names == self.trainable:
            return
        for name in self.trainable:
            self.held[name].train(False)
        for name in names:
            self.held[name].train(True)
        self.trainable = names

    def forward(self, function: Callable[..., Any], batch: Mapping[str, Tensor]) -> Any:
        """What a function of the models gives of a batch, where no gradient is asked for."""
        self.train_only(())
        # Slopes in the input turn gradients on themselves.
        with refusing("evaluation, or the drawing of samples,"), torch.no_grad(), self._autocast():
            return function(SimpleNamespace(**self.bare), batch, self.ops)

    def prepare(self, prepare: Prepare, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What `prepare` makes of a micro-batch: it moves no statistics, and no gradient flows through it."""
        self.train_only(())
        with self._autocast():
            prepared = prepare(SimpleNamespace(**self.bare), batch, self.ops)
        self.statistics.forget()
        return detached(prepared)

    def backward(self, turn: Turn) -> tuple[Any, Loss]:
        """Add up the gradients of one micro-batch; its weight and loss.

        They are gradients of a mean over the whole update, times the loss scale.
        """
        with refusing(f"phase {turn.update.phase.label}"):
            return self._backward(turn)

    def _backward(self, turn: Turn) -> tuple[Any, Loss]:
        try:
            return self._attempt(turn)
        except DifferentiatedTwice:  # raised before there was a gradient; from now on it is known
            self.twice.add(turn.update.phase.label)
            self.compiling.leave_out(turn.update.phase.label, says=self.tells)
            self.statistics.forget()
            return self._attempt(turn)

    def _attempt(self, turn: Turn) -> tuple[Any, Loss]:
        """The same; raises DifferentiatedTwice where it comes upon a slope that nobody is ready for."""
        update, micro, batch, phase = turn.update, turn.micro, turn.batch, turn.update.phase
        examples = len(next(iter(batch.values())))
        seed_generators(seed_of(*update.key, micro.number), self.ops.device)
        self.statistics.put_back(turn.before)
        if phase.prepare is not None:
            batch = self.prepare(phase.prepare, batch)
            self.statistics.put_back(turn.before)
        self.train_only(phase.updates)
        wrapped = {name: self.held[name].wrapped for name in phase.updates}
        models = SimpleNamespace(**{**self.bare, **wrapped})
        number = IDLE if micro.idle else micro.number
        with self._accumulating(phase, number, turn.is_last):
            with self._autocast():
                loss = self.compiling.of(phase.loss, phase.label)(models, batch, self.ops)
            weight = 0.0 if micro.idle else examples if loss.weight is None else loss.weight
            scaled = loss.value.to(self.ops.dtype)
            if isinstance(weight, Tensor):  # in this order, as whole numbers over one are float32
                scaled = scaled * weight / update.size
            elif weight != update.size:
                scaled = scaled * (weight / update.size)
            (scaled * turn.scale.scale if turn.scale else scaled).backward()
        return weight, loss

    @contextmanager
    def _accumulating(self, phase: Phase, number: int, is_last: bool) -> Iterator[None]:
        """Gradients go over the ranks with the last micro-batch alone, where they need not sooner.

        Where a loss has slopes in it, the backward goes through the backward of a model: all are kept whole.
        """
        is_twice = phase.label in self.twice
        needs_to_know = self.compiling.is_on or any(held.is_split for held in self.held.values())
        self.ops.differentiates_twice = is_twice or not needs_to_know
        with ExitStack() as stack:
            stack.enter_context(self.compiling.blocks_of(phase.label))
            for name in phase.updates:
                stack.enter_context(self.held[name].accumulating(number, is_last))
            for held in self.held.values() if is_twice else ():
                stack.enter_context(held.kept_whole())
            yield
        self.ops.differentiates_twice = True

    def _autocast(self) -> AbstractContextManager[Any]:
        if not self.half:
            return nullcontext()
        # Its cache would add up in half the gradients of a weight that a loss uses twice, as a
        # discriminator's, and keep copies of weights that FSDP and ZeRO had whole for a moment.
        return torch.autocast(self.ops.device.type, self.half, cache_enabled=False)


def detached(logs: Logs) -> Logs:
    """The same numbers, through which no gradient flows."""
    return {name: value.detach() if isinstance(value, Tensor) else value for name, value in logs.items()}
