"""One optimizer update in torch, whatever the ranks have of a model: in whole, or in parts."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from dtrain.backends.torch_ops import TorchOps, seed_generators
from dtrain.data.source import Batch
from dtrain.engines.arrays import put
from dtrain.engines.averages import Averages
from dtrain.engines.base import Batches, Fault, Key, Measured, Part, Update
from dtrain.engines.building import Site, hold_models
from dtrain.engines.digests import Digest, digests
from dtrain.engines.finite import Shown, Watch, all_finite, as_json, first_of, summed, weights_fault
from dtrain.engines.gradients import clip_norm, clip_values, rescale, total_norm
from dtrain.engines.held import Hold, Named
from dtrain.engines.loss_scale import LossScale
from dtrain.engines.means import Means
from dtrain.engines.passes import Passes, Turn, detached
from dtrain.engines.pieces import Piece, numbers, pieces, restore
from dtrain.engines.precision import HALF, check_precision, set_products
from dtrain.engines.statistics import IDLE, Notes, Statistics, Values
from dtrain.scale.tables import Scale
from dtrain.spec.averages import Average
from dtrain.spec.keys import seed_of
from dtrain.spec.models import Model
from dtrain.spec.optimizers import Optimizer
from dtrain.spec.trust import EVERYTHING, Trust
from dtrain.systems.base import Logs, Models, Ops
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
        # Of several processes Accelerate says cpu:0, which to torch.compile is another device than the cpu.
        is_cpu = accelerator.device.type == "cpu"
        self.device = torch.device("cpu") if is_cpu else accelerator.device
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.device_type = self.device.type
        check_precision(precision, self.device)
        set_products(precision)
        torch.backends.cudnn.deterministic = True  # or a resume gives other bits
        self.dtype = torch.float64 if precision == "fp64" else torch.float32
        half = HALF.get(precision)
        self.needs_scale = precision == "fp16"
        self.scales: dict[str, LossScale] = {}  # by phase, as its models step together
        self.clips = {name: (spec.clip_value, spec.clip) for name, spec in optimizers.items()}
        self.ops = TorchOps(self.device, self.dtype, trust)
        self.begun: list[str] = []
        self.held, compiling = hold_models(
            hold,
            models,
            optimizers,
            Site(
                device=self.device,
                dtype=self.dtype,
                is_half=half is not None,
                seed=seed,
                scale=scale,
                trust=trust,
                tells=self.begun.append,
            ),
        )
        self.bare = {name: held.module for name, held in self.held.items()}
        self.trained = tuple(optimizers)
        self.averages = Averages(averages, self.held)
        self.statistics = Statistics(self.bare, accelerator)
        self.passes = Passes(
            self.held, self.bare, compiling, self.ops, self.statistics, half, tells=self.rank == 0
        )
        self.means = Means(accelerator)
        self.skips = skips
        self.watch = Watch(self.device)
        self.latest = -1  # update that moved weights

    def update(self, update: Update, batches: Batches) -> Measured:
        names, shares = update.phase.updates, list(batches)
        scale = self._scale(update.phase.label)
        self.ops.step, self.ops.pace = update.step, update.pace
        self.averages.show(())
        before = self.statistics.values()
        terms: list[tuple[Any, Logs]] = []
        notes: dict[int, Notes] = {}
        after: Values = {}
        if any(self.held[name].needs_rehearsal for name in names):
            micro, arrays = shares[0]
            self._rehearse(Turn(update, micro, self._put(arrays), before, is_last=True, scale=scale))
        for place, (micro, arrays) in enumerate(shares):
            is_last = place == len(shares) - 1
            turn = Turn(update, micro, self._put(arrays), before, is_last, scale)
            weight, loss = self.passes.backward(turn)
            terms.append((weight, {"loss": loss.value.detach(), **detached(loss.terms)}))
            notes[IDLE if micro.idle else micro.number] = self.statistics.take(names)
            after = after or self.statistics.values()
        total: Tensor | float = update.size
        if loss.weight is not None:
            total = self.means.total_weight(terms, update.micro_batches).to(self.dtype)
        gradients = self._reduced(names, update.size / total)
        losses = {
            micro.number: logs for (micro, _), (_, logs) in zip(shares, terms, strict=True) if not micro.idle
        }
        # fp16 has gradients that overflow as a rule, and a scale that sees to them.
        watched = {} if scale else gradients
        if not self.skips:
            self.watch.note(update.number, losses, watched)
        elif fault := self._reason_to_skip(Shown(update.number, losses, summed(watched))):
            self.statistics.put_back(before)
            self._clear(names)
            return Measured(terms, skipped=fault)
        self.latest = update.number
        norms = self._step(gradients, update, scale)
        self.statistics.settle(names, notes, update.micro_batches, before, after)
        self.averages.updated(names)
        return Measured(terms, norms)

    def _rehearse(self, turn: Turn) -> None:
        """Compute gradients that nobody uses; everything random in them comes again."""
        self.passes.backward(turn)
        self.statistics.forget()
        self._clear(turn.update.phase.updates)
        for name in turn.update.phase.updates:
            self.held[name].needs_rehearsal = False

    def stepped(self, step: int) -> None:
        self.averages.stepped(step)

    def stale(self) -> list[str]:
        return sorted(self.averages.stale)

    def take_statistics(self, name: str, updates: Iterable[tuple[Update, Batches]]) -> None:
        self.averages.show([name])
        module, norms = self.bare[name].train(), self.averages.reset_statistics(name)
        before = self.statistics.values()
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
                    batch = self.passes.prepare(update.phase.prepare, batch)
                    self.averages.show([name])
                self.passes.forward(update.phase.loss, batch)
                notes[IDLE if micro.idle else micro.number] = self.statistics.take([name])
                self.statistics.put_back(before)
            self.statistics.settle([name], notes, update.micro_batches, before, before)
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
        self.passes.train_only(())
        self.averages.show(self.averages.used())
        seed_generators(seed_of(*key), self.device)
        was_training = [module for module in self.bare.values() if module.training]
        for module in was_training:
            module.eval()
        try:
            return self.passes.forward(function, self._put(batch))
        finally:
            for module in was_training:
                module.train()

    def mean(self, terms: Sequence[tuple[Any, Logs]]) -> dict[str, float]:
        return self.means.mean(terms)

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

    def digests(self) -> dict[str, Digest]:
        self.averages.show(())
        return digests(self.held, self.averages, is_first=self.rank == 0)

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
        self.statistics.clear()
        self.held.clear()
        self.bare.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def share(self, value: Any) -> Any:
        return self.gather(value if self.rank == 0 else None)[0]

    def gather(self, value: Any) -> list[Any]:
        return gather_json(value, self.accelerator) if self.world > 1 else [value]

    def gather_arrays(self, array: Tensor) -> list[Tensor]:
        return gather_arrays(array, self.accelerator) if self.world > 1 else [array]

    def _put(self, batch: Batch) -> dict[str, Tensor]:
        return put(batch, self.device, self.dtype)

    def _scale(self, label: str) -> LossScale | None:
        return self.scales.setdefault(label, LossScale()) if self.needs_scale else None

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
