"""One optimizer update in torch, whatever the ranks have of a model: in whole, or in parts."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from dtrain.backends.torch_backend import batch_norms
from dtrain.backends.torch_ops import DifferentiatedTwice, TorchOps, seed_generators
from dtrain.data.order import MicroBatch
from dtrain.data.source import Batch
from dtrain.engines.averages import Averages
from dtrain.engines.base import Batches, Fault, Key, Measured, Part, Update
from dtrain.engines.building import Site, hold_models
from dtrain.engines.finite import Shown, Watch, all_finite, as_json, first_of, summed, weights_fault
from dtrain.engines.gradients import clip_norm, clip_values, rescale, total_norm
from dtrain.engines.held import Hold, Named
from dtrain.engines.loss_scale import LossScale
from dtrain.engines.pieces import Piece, numbers, pieces, restore
from dtrain.engines.precision import HALF, check_precision, set_products
from dtrain.engines.statistics import IDLE, Notes, average_notes, loose_buffers, take_notes
from dtrain.scale.tables import Scale
from dtrain.spec.averages import Average
from dtrain.spec.keys import seed_of
from dtrain.spec.models import Model
from dtrain.spec.optimizers import Optimizer
from dtrain.spec.trust import EVERYTHING, Trust
from dtrain.systems.base import Logs, Loss, Models, Ops, Phase
from dtrain.world.exchange import gather_arrays, gather_json


class TorchEngine:
    """Every trained model has an optimizer of its own and moves in its phases alone.

    `hold` says how a model is kept among the ranks; `averages` are those that are kept of some models. With
    `skips`, an update whose numbers are not finite moves nothing.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        hold: Hold,
        *,
        models: Mapping[str, Model],
        optimizers: Mapping[str, Optimizer],
        averages: Mapping[str, Average],
        precision: str,
        seed: int,
        scale: Scale,
        skips: bool = False,
        trust: Trust = EVERYTHING,
    ):
        self.accelerator = accelerator
        self.device = accelerator.device
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        check_precision(precision, self.device)
        set_products(precision)
        torch.backends.cudnn.deterministic = True  # or a resume gives other bits
        self.dtype = torch.float64 if precision == "fp64" else torch.float32
        self.half = HALF.get(precision)
        self.needs_scale = precision == "fp16"
        self.scales: dict[str, LossScale] = {}  # by phase, as its models step together
        self.clips = {name: (spec.clip_value, spec.clip) for name, spec in optimizers.items()}
        self.ops = TorchOps(self.device, self.dtype, trust)
        self.held, self.compiling = hold_models(
            hold,
            models,
            optimizers,
            Site(
                device=self.device,
                dtype=self.dtype,
                is_half=self.half is not None,
                seed=seed,
                scale=scale,
                trust=trust,
            ),
        )
        self.bare = {name: held.module for name, held in self.held.items()}
        self.trained = tuple(optimizers)
        self.averages = Averages(averages, self.held)
        self.norms = {name: batch_norms(module) for name, module in self.bare.items()}
        self.loose = {name: loose_buffers(module) for name, module in self.bare.items()}
        self.skips = skips
        self.watch = Watch(self.device)
        self.latest = -1  # update that moved weights
        self.trainable: tuple[str, ...] = ()
        self.twice: set[str] = set()  # phases whose losses have slopes in them
        for name, module in self.bare.items():
            module.requires_grad_(False)
            self.held[name].train(False)

    def update(self, update: Update, batches: Batches) -> Measured:
        names, shares = update.phase.updates, list(batches)
        scale = self._scale(update.phase.label)
        self.ops.step, self.ops.pace = update.step, update.pace
        self.averages.show(())
        before = self._loose_values()
        terms: list[tuple[Any, Logs]] = []
        notes: dict[int, Notes] = {}
        after: dict[str, list[Tensor]] = {}
        if any(self.held[name].needs_rehearsal for name in names):
            self._rehearse(update, shares[0], before)
        for place, (micro, arrays) in enumerate(shares):
            batch = self._put(arrays)
            is_last = place == len(shares) - 1
            weight, loss = self._backward(update, micro, batch, before, is_last)
            terms.append((weight, {"loss": loss.value.detach(), **_detached(loss.terms)}))
            taken = take_notes([norm for name in names for norm in self.norms[name]])
            take_notes([norm for name in self.bare if name not in names for norm in self.norms[name]])
            notes[IDLE if micro.idle else micro.number] = taken
            after = after or self._loose_values()
        total = update.size if loss.weight is None else self._total_weight(terms, update.micro_batches)
        gradients = self._reduced(names, update.size / total)
        losses = {
            micro.number: logs for (micro, _), (_, logs) in zip(shares, terms, strict=True) if not micro.idle
        }
        # fp16 has gradients that overflow as a rule, and a scale that sees to them.
        watched = {} if scale else gradients
        if not self.skips:
            self.watch.note(update.number, losses, watched)
        elif fault := self._reason_to_skip(Shown(update.number, losses, summed(watched))):
            self._put_back(before)
            self._clear(names)
            return Measured(terms, skipped=fault)
        self.latest = update.number
        norms = self._step(gradients, update, scale)
        norms_of_phase = [norm for name in names for norm in self.norms[name]]
        average_notes(norms_of_phase, notes, update.micro_batches, self.accelerator)
        self._put_back({**before, **{name: after[name] for name in names if name in after}})
        if self.world > 1:
            for buffer in (buffer for name in names for buffer in self.loose[name]):
                torch.distributed.broadcast(buffer, 0)
        self.averages.updated(names)
        return Measured(terms, norms)

    def _rehearse(
        self, update: Update, share: tuple[MicroBatch, Batch], before: Mapping[str, Sequence[Tensor]]
    ) -> None:
        """Compute gradients that nobody uses; everything random in them comes again."""
        micro, arrays = share
        self._backward(update, micro, self._put(arrays), before, is_last=True)
        take_notes([norm for own in self.norms.values() for norm in own])
        self._clear(update.phase.updates)
        for name in update.phase.updates:
            self.held[name].needs_rehearsal = False

    def _backward(
        self,
        update: Update,
        micro: MicroBatch,
        batch: Mapping[str, Tensor],
        before: Mapping[str, Sequence[Tensor]],
        is_last: bool,
    ) -> tuple[Any, Loss]:
        """Forward and backward of one micro-batch, whose gradients are added up; its weight and loss."""
        try:
            return self._attempt(update, micro, batch, before, is_last)
        except DifferentiatedTwice:  # raised before there was a gradient; from now on it is known
            self.twice.add(update.phase.label)
            self.compiling.leave_out(update.phase.label, says=self.rank == 0)
            take_notes([norm for own in self.norms.values() for norm in own])
            return self._attempt(update, micro, batch, before, is_last)

    def _attempt(
        self,
        update: Update,
        micro: MicroBatch,
        batch: Mapping[str, Tensor],
        before: Mapping[str, Sequence[Tensor]],
        is_last: bool,
    ) -> tuple[Any, Loss]:
        """The same; raises DifferentiatedTwice where it comes upon a slope that nobody is ready for."""
        phase, scale = update.phase, self._scale(update.phase.label)
        examples = len(next(iter(batch.values())))
        seed_generators(seed_of(*update.key, micro.number), self.device)
        self._put_back(before)
        if phase.prepare is not None:
            batch = self._prepare(phase.prepare, batch)
            self._put_back(before)
        self._train_only(phase.updates)
        wrapped = {name: self.held[name].wrapped for name in phase.updates}
        models = SimpleNamespace(**{**self.bare, **wrapped})
        number = IDLE if micro.idle else micro.number
        with self._accumulating(phase, number, is_last):
            with self._autocast():
                loss = self.compiling.of(phase.loss, phase.label)(models, batch, self.ops)
            weight = 0.0 if micro.idle else examples if loss.weight is None else loss.weight
            scaled = loss.value.to(self.dtype)
            if isinstance(weight, Tensor):  # in this order, as whole numbers over one are float32
                scaled = scaled * weight / update.size
            elif weight != update.size:
                scaled = scaled * (weight / update.size)
            (scaled * scale.scale if scale else scaled).backward()
        return weight, loss

    def stepped(self, step: int) -> None:
        self.averages.stepped(step)

    def stale(self) -> list[str]:
        return sorted(self.averages.stale)

    def take_statistics(self, name: str, updates: Iterable[tuple[Update, Batches]]) -> None:
        self.averages.show([name])
        module, norms = self.bare[name].train(), self.averages.reset_statistics(name)
        before = self._loose_values()
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = None  # these statistics are plain means over batches
        for update, batches in updates:
            notes: dict[int, Notes] = {}
            for micro, arrays in batches:
                seed_generators(seed_of(*update.key, micro.number), self.device)
                batch: Mapping[str, Tensor] = self._put(arrays)
                if update.phase.prepare is not None:
                    self.averages.show(())
                    batch = self._prepare(update.phase.prepare, batch)
                    self.averages.show([name])
                self._train_only(())
                with torch.no_grad(), self._autocast():
                    update.phase.loss(SimpleNamespace(**self.bare), batch, self.ops)
                notes[IDLE if micro.idle else micro.number] = take_notes(norms)
                take_notes([norm for own in self.norms.values() for norm in own])
                self._put_back(before)
            average_notes(norms, notes, update.micro_batches, self.accelerator)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        module.train(name in self.trained)
        self.averages.settled(name)

    def fault(self, *, weights: bool = False) -> Fault | None:
        self.averages.show(())  # all ranks do, whatever each of them finds
        found = self.watch.look()
        if found is None and weights:
            found = weights_fault(self.latest, {name: self.held[name].weights() for name in self.trained})
        return first_of(self.gather(as_json(found)))

    def run(
        self, function: Callable[[Models, Mapping[str, Any], Ops], Any], batch: Batch, *, key: Key
    ) -> Any:
        self._train_only(())
        self.averages.show(self.averages.used())
        seed_generators(seed_of(*key), self.device)
        was_training = [module for module in self.bare.values() if module.training]
        for module in was_training:
            module.eval()
        try:
            with torch.no_grad(), self._autocast():  # slopes in the input turn gradients on themselves
                return function(SimpleNamespace(**self.bare), self._put(batch), self.ops)
        finally:
            for module in was_training:
                module.train()

    def mean(self, terms: Sequence[tuple[Any, Logs]]) -> dict[str, float]:
        names = list(terms[0][1]) if terms else []
        names = self.share(names) if self.world > 1 else names
        if not names:  # a system that evaluates nothing
            return {}
        weights = self._numbers([weight for weight, _ in terms])[:, None]
        rows = self._numbers([logs[name] for _, logs in terms for name in names]).reshape(len(terms), -1)
        weighed = torch.where(weights > 0, rows * weights, 0.0)  # what counts for nothing may be nan
        table = torch.cat([weighed, weights], dim=1)
        if self.world > 1:
            table = self.accelerator.gather(table)
        *sums, total = map(exact_sum, table.T.tolist())
        return {name: value / (total or 1.0) for name, value in zip(names, sums, strict=True)}

    def _numbers(self, values: Sequence[Tensor | float]) -> Tensor:
        """Numbers and scalar arrays as one array on the device, where no value of it is waited for."""
        plain = [0.0 if isinstance(value, Tensor) else float(value) for value in values]
        on_device = self._sent(torch.tensor(plain, dtype=torch.float64)).unbind()
        return torch.stack(
            [
                value.double().reshape(()) if isinstance(value, Tensor) else number
                for value, number in zip(values, on_device, strict=True)
            ]
        )

    def sizes(self) -> Iterator[tuple[Part, str, int]]:
        self.averages.show(())
        return (
            (each.part, each.path, self.held[each.model].size(each.name, each.tensor))
            for each in self._pieces()
        )

    def tensors(self) -> Iterator[tuple[Part, str, Tensor]]:
        self.averages.show(())
        return (
            (each.part, each.path, self.held[each.model].whole(each.name, each.tensor))
            for each in self._pieces()
        )

    def _pieces(self) -> Iterator[Piece]:
        return pieces(self.held, self.averages)

    def scalars(self) -> dict[str, Any]:
        scales = {label: scale.state() for label, scale in self.scales.items()}
        return {
            "optimizers": {"numbers": numbers(self.held)},
            "loss_scales": scales,
            "averages": self.averages.counts,
        }

    def restore(self, tensors: Mapping[Part, Mapping[str, Tensor]], scalars: Mapping[str, Any]) -> None:
        self.averages.show(())
        state = {**scalars["optimizers"]["numbers"], **tensors.get("optimizers", {})}
        counts = scalars.get("averages", {})  # older checkpoints have none
        restore(self.held, self.averages, tensors, state=state, counts=counts)
        for label, kept in scalars["loss_scales"].items():
            if (scale := self._scale(label)) is not None:
                scale.restore(kept)

    def close(self) -> None:
        """Let go of models and optimizers: DDP must end before the process group does."""
        for held in self.held.values():
            held.close()
        self.averages.close()
        for each in (self.held, self.bare, self.norms, self.loose):
            each.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def share(self, value: Any) -> Any:
        return self.gather(value if self.rank == 0 else None)[0]

    def gather(self, value: Any) -> list[Any]:
        return gather_json(value, self.accelerator) if self.world > 1 else [value]

    def gather_arrays(self, array: Tensor) -> list[Tensor]:
        return gather_arrays(array, self.accelerator) if self.world > 1 else [array]

    def _prepare(
        self, prepare: Callable[[Models, Mapping[str, Any], Ops], Logs], batch: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """What `prepare` makes of a micro-batch: it moves no statistics, and no gradient flows through it."""
        self._train_only(())
        with self._autocast():
            prepared = prepare(SimpleNamespace(**self.bare), batch, self.ops)
        take_notes([norm for norms in self.norms.values() for norm in norms])
        return _detached(prepared)

    def _put(self, batch: Batch) -> dict[str, Tensor]:
        """Arrays on the device; fractions in the precision of the models."""
        tensors = {}
        for name, array in batch.items():
            tensor = self._sent(torch.from_numpy(np.ascontiguousarray(array)))
            tensors[name] = tensor.to(self.dtype) if tensor.is_floating_point() else tensor
        return tensors

    def _sent(self, tensor: Tensor) -> Tensor:
        """A tensor on the device, which is not waited for."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def _autocast(self) -> AbstractContextManager[Any]:
        if not self.half:
            return nullcontext()
        # Its cache would add up in half the gradients of a weight that a loss uses twice, as a discriminator's,
        # and keep copies of weights that FSDP and ZeRO had whole for a moment.
        return torch.autocast(self.device.type, self.half, cache_enabled=False)

    def _scale(self, label: str) -> LossScale | None:
        return self.scales.setdefault(label, LossScale()) if self.needs_scale else None

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

    def _train_only(self, names: tuple[str, ...]) -> None:
        """Let gradients reach the parameters of these models and of no others."""
        if names == self.trainable:
            return
        for name in self.trainable:
            self.held[name].train(False)
        for name in names:
            self.held[name].train(True)
        self.trainable = names

    def _total_weight(self, terms: Sequence[tuple[Any, Logs]], micro_batches: int) -> Tensor:
        """The sum of all weights, added in the order of the micro-batches."""
        weights = self._numbers([weight for weight, _ in terms])
        if self.world > 1:
            weights = self.accelerator.gather(weights).view(self.world, -1).T.flatten()[:micro_batches]
        return weights.sum().clamp_min(1e-12).to(self.dtype)  # where nothing has weight, nothing moves

    def _reduced(self, names: Sequence[str], factor: Tensor | float) -> dict[str, Named]:
        """The gradients times `factor`, and the sums over which they are means where a sum is wanted.

        Not in the loss: there fp16 would overflow the sooner the more ranks there are.
        """
        gradients = {}
        for name in names:
            self.held[name].reduce()
            gradients[name] = self.held[name].gradients()
            rescale([gradient for _, gradient in gradients[name]], factor * self.held[name].mean_over)
        return gradients

    def _step(
        self, gradients: Mapping[str, Named], update: Update, scale: LossScale | None
    ) -> dict[str, Tensor]:
        """Clip, set the rate, step, clear: one model after the other. The norms are those before clipping."""
        norms = {}
        moves = True
        if scale is not None:
            for named in gradients.values():
                rescale([gradient for _, gradient in named], 1 / scale.scale)
            moves = not self._is_bad(Shown(update.number, {}, summed(gradients)))
            scale.updated(is_finite=moves)
            if scale.is_hopeless:
                self.watch.note(update.number, {}, gradients)
        for name, named in gradients.items():
            own = [gradient for _, gradient in named]
            highest, longest = self.clips[name]
            total = self._sum if self.held[name].is_split else None
            if update.measure or (longest is not None and highest is None):
                norms[name] = total_norm(own, total)
            if not moves:
                continue
            clip_values(own, highest)
            if longest is not None:
                clip_norm(own, longest, norms[name] if highest is None else total_norm(own, total))
            self.held[name].step(update.settings[name])
        self._clear(gradients)
        return norms

    def _clear(self, names: Iterable[str]) -> None:
        for name in names:
            self.held[name].clear()

    def _sum(self, number: Tensor) -> Tensor:
        """The sum of a number over the ranks."""
        total: Tensor = self.accelerator.reduce(number, "sum")
        return total

    def _is_bad(self, shown: Shown) -> bool:
        """Whether anything is not finite on any rank, at the cost of one wait for the device."""
        is_bad = not all_finite([shown], self.device)
        if self.world > 1:
            is_bad = bool(self._sum(torch.tensor(float(is_bad), device=self.device)))
        return is_bad

    def _reason_to_skip(self, shown: Shown) -> Fault | None:
        """What is not finite on any rank; every rank hears of it."""
        return first_of(self.gather(as_json(shown.fault()))) if self._is_bad(shown) else None

    def _loose_values(self) -> dict[str, list[Tensor]]:
        """The buffers that a forward may move (see `loose_buffers`), by model; copies.

        Every micro-batch starts from those before the update, and those that micro-batch 0 leaves stay,
        in the updated models: so they are the same for any size of micro-batches and number of ranks.
        """
        return {name: [buffer.clone() for buffer in own] for name, own in self.loose.items() if own}

    def _put_back(self, values: Mapping[str, Sequence[Tensor]]) -> None:
        for name, own in values.items():
            torch._foreach_copy_(self.loose[name], list(own))


def _detached(logs: Logs) -> Logs:
    return {name: value.detach() if isinstance(value, Tensor) else value for name, value in logs.items()}


def exact_sum(numbers: Sequence[float]) -> float:
    """The sum as it rounds from the exact one, so that the order, and the ranks, are of no account."""
    try:
        return math.fsum(numbers)
    except (OverflowError, ValueError):  # of inf and -inf
        return sum(numbers)
