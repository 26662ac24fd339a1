"""One process or DDP, on CPUs and GPUs alike, by way of Accelerate."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dtrain.backends.torch_backend import batch_norms, build_model, embeddings, trained_parameters
from dtrain.backends.torch_ops import TorchOps, seed_generators
from dtrain.backends.torch_optimizers import build_optimizer
from dtrain.backends.torch_weights import named_tensors, restore_tensors
from dtrain.data.source import Batch
from dtrain.engines.averages import Averages
from dtrain.engines.base import Batches, Fault, Key, Measured, Part, Update
from dtrain.engines.exchange import gather_arrays, gather_json
from dtrain.engines.finite import Shown, Watch, all_finite, as_json, first_of, gradients, weights_fault
from dtrain.engines.precision import HALF, check_precision, in_full
from dtrain.engines.statistics import IDLE, Notes, average_notes, loose_buffers, take_notes
from dtrain.engines.torch_state import Optimizers
from dtrain.spec.averages import Average
from dtrain.spec.keys import seed_of
from dtrain.spec.models import Model
from dtrain.spec.optimizers import Optimizer
from dtrain.spec.trust import EVERYTHING, Trust
from dtrain.systems.base import Logs, Models, Ops


class AcceleratedEngine:
    """Every trained model is wrapped by itself, with an optimizer of its own; the others stay frozen.

    `averages` are those that are kept of some models. With `skips`, an update whose numbers are not finite
    moves nothing.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        *,
        models: Mapping[str, Model],
        optimizers: Mapping[str, Optimizer],
        averages: Mapping[str, Average],
        precision: str,
        seed: int,
        skips: bool = False,
        trust: Trust = EVERYTHING,
    ):
        self.accelerator = accelerator
        self.device = accelerator.device
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        check_precision(precision, self.device)
        # cuDNN's convolutions otherwise round fp32 to tf32 in silence. torch makes the name at import.
        torch.backends.fp32_precision = "ieee"  # type: ignore[attr-defined]
        torch.backends.cudnn.deterministic = True  # or a resume gives other bits
        self.dtype = torch.float64 if precision == "fp64" else torch.float32
        self.half = HALF.get(precision)
        self.needs_scaler = precision == "fp16"
        self.scalers: dict[str, torch.amp.GradScaler] = {}  # by phase, as its models step together
        self.clips = {name: (spec.clip_value, spec.clip) for name, spec in optimizers.items()}
        self.ops = TorchOps(self.device, self.dtype, trust)
        self.bare: dict[str, nn.Module] = {}
        self.wrapped: dict[str, nn.Module] = {}
        for name, spec in models.items():
            module = build_model(name, spec, seed=seed, trust=trust).to(self.device, self.dtype)
            if self.half:  # losses are computed in full from what models give in half
                module.register_forward_hook(in_full)
            self.bare[name] = self.wrapped[name] = module.train(name in optimizers)
        self.parameters: dict[str, list[Tensor]] = {
            name: list(module.parameters()) for name, module in self.bare.items()
        }
        # What comes frozen, as a part of an imported model may, stays so.
        named = {name: trained_parameters(module) for name, module in self.bare.items()}
        self.trained = {name: list(own.values()) for name, own in named.items()}
        made = {
            name: build_optimizer(
                name, spec, named[name], embeddings=embeddings(self.bare[name]), trust=trust
            )
            for name, spec in optimizers.items()
        }
        self.optimizers = Optimizers(made, named, {name: spec.lr for name, spec in optimizers.items()})
        for name in optimizers if self.world > 1 else ():  # alone it would do nothing, in a second
            self.wrapped[name] = accelerator.prepare_model(self.bare[name])
        self.averages = Averages(averages, self.bare)
        self.norms = {name: batch_norms(module) for name, module in self.bare.items()}
        self.loose = {name: loose_buffers(module) for name, module in self.bare.items()}
        self.named = {name: list(module.named_parameters()) for name, module in self.bare.items()}
        self.skips = skips
        self.watch = Watch(self.device)
        self.latest = -1  # update that moved weights
        self.trainable: tuple[str, ...] = ()
        for module in self.bare.values():
            module.requires_grad_(False)

    def update(self, update: Update, batches: Batches) -> Measured:
        names, shares = update.phase.updates, list(batches)
        scaler = self._scaler(update.phase.label)
        self.ops.step, self.ops.pace = update.step, update.pace
        before = self._loose_values()
        terms: list[tuple[Any, Logs]] = []
        notes: dict[int, Notes] = {}
        after: dict[str, list[Tensor]] = {}
        for place, (micro, arrays) in enumerate(shares):
            seed_generators(seed_of(*update.key, micro.number), self.device)
            examples = len(next(iter(arrays.values())))
            batch: Mapping[str, Tensor] = self._put(arrays)
            self._put_back(before)
            if update.phase.prepare is not None:
                batch = self._prepare(update.phase.prepare, batch)
                self._put_back(before)
            self._train_only(names)
            models = SimpleNamespace(**{**self.bare, **{name: self.wrapped[name] for name in names}})
            with self._synchronised(names, place == len(shares) - 1):
                with self._autocast():
                    loss = update.phase.loss(models, batch, self.ops)
                weight = 0.0 if micro.idle else examples if loss.weight is None else loss.weight
                scaled = loss.value.to(self.dtype)
                if isinstance(weight, Tensor):
                    scaled = (
                        scaled * weight / update.size
                    )  # in this order, as whole numbers over one are float32
                elif weight != update.size:
                    scaled = scaled * (weight / update.size)
                (scaler.scale(scaled) if scaler else scaled).backward()
            terms.append((weight, {"loss": loss.value.detach(), **_detached(loss.terms)}))
            taken = take_notes([norm for name in names for norm in self.norms[name]])
            take_notes([norm for name in self.bare if name not in names for norm in self.norms[name]])
            notes[IDLE if micro.idle else micro.number] = taken
            after = after or self._loose_values()
        total = update.size if loss.weight is None else self._total_weight(terms)
        self._rescale(names, update.size / total)
        losses = {
            micro.number: logs for (micro, _), (_, logs) in zip(shares, terms, strict=True) if not micro.idle
        }
        # fp16 has gradients that overflow as a rule, and a scaler that sees to them.
        watched = {} if scaler else {name: self.named[name] for name in names}
        if not self.skips:
            self.watch.note(update.number, losses, watched)
        elif fault := self._reason_to_skip(Shown(update.number, losses, gradients(watched))):
            self._put_back(before)
            self._clear(names)
            return Measured(terms, skipped=fault)
        self.latest = update.number
        norms = self._step(names, update, scaler)
        norms_of_phase = [norm for name in names for norm in self.norms[name]]
        average_notes(norms_of_phase, notes, update.micro_batches, self.accelerator)
        self._put_back({**before, **{name: after[name] for name in names if name in after}})
        if self.world > 1:
            for buffer in (buffer for name in names for buffer in self.loose[name]):
                torch.distributed.broadcast(buffer, 0)
        self.averages.updated(names)
        return Measured(terms, norms)

    def stepped(self, step: int) -> None:
        self.averages.stepped(step)

    def stale(self) -> list[str]:
        return sorted(self.averages.stale)

    def take_statistics(self, name: str, updates: Iterable[tuple[Update, Batches]]) -> None:
        average, norms = self.averages.modules[name].train(), self.averages.norms[name]
        before = self._loose_values()
        for norm in norms:
            norm.reset_running_stats()
        for update, batches in updates:
            notes: dict[int, Notes] = {}
            for micro, arrays in batches:
                seed_generators(seed_of(*update.key, micro.number), self.device)
                batch: Mapping[str, Tensor] = self._put(arrays)
                if update.phase.prepare is not None:
                    batch = self._prepare(update.phase.prepare, batch)
                self._train_only(())
                with torch.no_grad(), self._autocast():
                    update.phase.loss(SimpleNamespace(**{**self.bare, name: average}), batch, self.ops)
                notes[IDLE if micro.idle else micro.number] = take_notes(norms)
                take_notes([norm for own in self.norms.values() for norm in own])
                self._put_back(before)
            average_notes(norms, notes, update.micro_batches, self.accelerator)
        average.eval()
        self.averages.settled(name)

    def fault(self, *, weights: bool = False) -> Fault | None:
        found = self.watch.look()
        if found is None and weights:
            found = weights_fault(
                self.latest, {name: self.named[name] for name in self.optimizers.optimizers}
            )
        return first_of(self.gather(as_json(found)))

    def run(
        self, function: Callable[[Models, Mapping[str, Any], Ops], Any], batch: Batch, *, key: Key
    ) -> Any:
        self._train_only(())
        seed_generators(seed_of(*key), self.device)
        modules = {**self.bare, **self.averages.used()}
        was_training = [module for module in modules.values() if module.training]
        for module in was_training:
            module.eval()
        try:
            with torch.no_grad(), self._autocast():  # slopes in the input turn gradients on themselves
                return function(SimpleNamespace(**modules), self._put(batch), self.ops)
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
        sums = torch.cat([weighed, weights], dim=1).sum(0)
        if self.world > 1:
            sums = self.accelerator.reduce(sums, "sum")
        *values, total = sums.tolist()
        return {name: value / (total or 1.0) for name, value in zip(names, values, strict=True)}

    def _numbers(self, values: Sequence[Tensor | float]) -> Tensor:
        """Numbers and scalar arrays as one array on the device, where no value of it is waited for."""
        plain = [0.0 if isinstance(value, Tensor) else float(value) for value in values]
        on_device = torch.tensor(plain, dtype=torch.float64, device=self.device).unbind()
        return torch.stack(
            [
                value.double().reshape(()) if isinstance(value, Tensor) else number
                for value, number in zip(values, on_device, strict=True)
            ]
        )

    def tensors(self) -> Iterator[tuple[Part, str, Tensor]]:
        for name, module in self.bare.items():
            for key, tensor in named_tensors(module).items():
                yield "models", f"{name}/{key}", tensor.detach()
        for key, tensor in self.optimizers.tensors():
            yield "optimizers", key, tensor
        for key, tensor in self.averages.tensors():
            yield "averages", key, tensor

    def scalars(self) -> dict[str, Any]:
        scalers = {label: scaler.state_dict() for label, scaler in self.scalers.items()}
        return {"optimizers": self.optimizers.scalars(), "loss_scales": scalers} | {
            "averages": self.averages.counts
        }

    def restore(self, tensors: Mapping[Part, Mapping[str, Tensor]], scalars: Mapping[str, Any]) -> None:
        own: dict[Part, dict[str, Tensor]] = {"models": {}, "averages": {}}
        for part, name, tensor in self.tensors():
            if part != "optimizers":
                own[part][name] = tensor
        restore_tensors(own, tensors)
        self.optimizers.restore(tensors.get("optimizers", {}), scalars["optimizers"])
        for label, state in scalars["loss_scales"].items():
            scaler = self._scaler(label)
            if scaler is not None:
                scaler.load_state_dict(state)
        self.averages.restore(scalars.get("averages", {}))  # older checkpoints have none

    def close(self) -> None:
        """Let go of models and optimizers: DDP must end before the process group does."""
        for held in (
            self.bare,
            self.wrapped,
            self.averages.modules,
            self.averages.own,
            self.parameters,
            self.named,
            self.trained,
            self.norms,
            self.loose,
        ):
            held.clear()
        self.optimizers = Optimizers({}, {}, {})
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
            tensor = torch.from_numpy(np.ascontiguousarray(array))
            if self.device.type == "cuda":
                tensor = tensor.pin_memory().to(self.device, non_blocking=True)
            tensors[name] = tensor.to(self.dtype) if tensor.is_floating_point() else tensor
        return tensors

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.half) if self.half else nullcontext()

    def _scaler(self, label: str) -> torch.amp.GradScaler | None:
        if self.needs_scaler and label not in self.scalers:
            self.scalers[label] = torch.amp.GradScaler(self.device.type)
        return self.scalers.get(label)

    def _synchronised(self, names: Sequence[str], is_last: bool) -> AbstractContextManager[Any]:
        """Gradients go over the ranks with the last micro-batch alone."""
        if is_last or self.world == 1:
            return nullcontext()
        stack = ExitStack()
        for name in names:
            stack.enter_context(self.accelerator.no_sync(self.wrapped[name]))
        return stack

    def _train_only(self, names: tuple[str, ...]) -> None:
        """Let gradients reach the parameters of these models and of no others."""
        if names == self.trainable:
            return
        for parameter in (parameter for name in self.trainable for parameter in self.trained[name]):
            parameter.requires_grad_(False)
        for parameter in (parameter for name in names for parameter in self.trained[name]):
            parameter.requires_grad_(True)
        self.trainable = names

    def _total_weight(self, terms: Sequence[tuple[Any, Logs]]) -> Tensor:
        weights = [torch.as_tensor(w, dtype=torch.float64, device=self.device) for w, _ in terms]
        weight = torch.stack(weights).sum()
        total = self.accelerator.reduce(weight, "sum") if self.world > 1 else weight
        return total.clamp_min(1e-12).to(self.dtype)  # where nothing has weight, nothing moves

    def _rescale(self, names: Sequence[str], factor: Tensor | float) -> None:
        """Multiply the gradients by `factor`, and by the ranks over which DDP averaged where a sum is wanted.

        Not in the loss: there fp16 would overflow the sooner the more ranks there are.
        """
        factor = factor * self.world
        if isinstance(factor, Tensor) or factor != 1:
            for name in names:
                grads = [p.grad for p in self.trained[name] if p.grad is not None]
                torch._foreach_mul_(grads, factor)

    def _step(
        self, names: Sequence[str], update: Update, scaler: torch.amp.GradScaler | None
    ) -> dict[str, Tensor]:
        """Clip, set the rate, step, clear: one model after the other. The norms are those before clipping."""
        norms = {}
        for name in names:
            optimizer, parameters = self.optimizers[name], self.trained[name]
            highest, longest = self.clips[name]
            if scaler is not None:
                scaler.unscale_(optimizer)
            if update.measure or (longest is not None and highest is None):
                norms[name] = norm = _norm(parameters)
            if highest is not None:
                nn.utils.clip_grad_value_(parameters, highest)
            if longest is not None:
                norm = norm if highest is None else _norm(parameters)
                nn.utils.clip_grads_with_norm_(parameters, longest, norm)
            self.optimizers.set(name, update.settings[name])
            if scaler is not None:
                scaler.step(optimizer)
            else:
                optimizer.step()
        self._clear(names)
        if scaler is not None:
            scaler.update()
        return norms

    def _clear(self, names: Sequence[str]) -> None:
        for name in names:
            for parameter in self.parameters[name]:
                parameter.grad = None

    def _reason_to_skip(self, shown: Shown) -> Fault | None:
        """What is not finite on any rank; every rank hears of it, at the cost of one wait for the device."""
        is_bad = not all_finite([shown], self.device)
        if self.world > 1:
            is_bad = bool(self.accelerator.reduce(torch.tensor(float(is_bad), device=self.device), "sum"))
        return first_of(self.gather(as_json(shown.fault()))) if is_bad else None

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


def _norm(parameters: Sequence[Tensor]) -> Tensor:
    """The global norm of what gradients there are."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
