"""Averages of weights: parts like those that an engine keeps of its models, exchanged with them in use."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from dtrain.backends.torch_backend import batch_norms
from dtrain.backends.torch_batch_norm import RecordingBatchNorm
from dtrain.engines.held import Held, Named
from dtrain.spec.averages import Average, ExponentialAverage, StochasticAverage


class Averages:
    """The averages by model. `counts` says how many updates each has seen, or steps taken in (`swa`).

    An average is of weights alone: what else a model keeps is its own, but for the statistics of batch
    normalisations of equal averages.
    """

    def __init__(self, specs: Mapping[str, Average], models: Mapping[str, Held]):
        self.specs = dict(specs)
        self.held = {name: models[name] for name in specs}
        self.parts = {name: [part.clone() for _, part in models[name].weights()] for name in specs}
        self.norms = {
            name: batch_norms(models[name].module) if isinstance(spec, StochasticAverage) else []
            for name, spec in specs.items()
        }
        self.statistics = {
            name: [buffer.clone() for _, buffer in self._own_statistics(name)] for name in specs
        }
        self.counts = dict.fromkeys(specs, 0)
        self.shown: tuple[str, ...] = ()  # whose weights the models hold at the moment, and these theirs
        self.moved: set[str] = set()  # since the last step
        self.stale: set[str] = set()  # whose statistics are those of other weights

    def show(self, names: Iterable[str]) -> None:
        """Let these stand in their models' places, and no others. Collective."""
        wanted = tuple(name for name in names if self._has_begun(name))
        for name in dict.fromkeys((*self.shown, *wanted)):
            if (name in self.shown) != (name in wanted):
                self._exchange(name)
        self.shown = wanted

    def used(self) -> list[str]:
        """Those that stand in for their models when these are evaluated and sampled."""
        return [name for name, spec in self.specs.items() if spec.evaluate]

    @torch.no_grad()  # or the averages would grow a graph, an update at a time
    def updated(self, names: Sequence[str]) -> None:
        """Take in the weights of models after an update."""
        for name in names:
            spec = self.specs.get(name)
            if spec is None:
                continue
            self.moved.add(name)
            if not isinstance(spec, ExponentialAverage):
                continue
            self.counts[name] += 1
            if self.counts[name] % spec.every == 0:
                kept = spec.share(self.counts[name] // spec.every - 1)
                self._take_in(name, 1 - kept)

    @torch.no_grad()
    def stepped(self, step: int) -> None:
        """Take in the weights after a step, counted from 0, of those models that it moved."""
        for name in self.moved:
            spec = self.specs[name]
            if isinstance(spec, StochasticAverage) and spec.takes(step):
                self._take_in(name, 1 / (self.counts[name] + 1))
                self.counts[name] += 1
                if self.norms[name]:
                    self.stale.add(name)
        self.moved.clear()

    def reset_statistics(self, name: str) -> Sequence[RecordingBatchNorm]:
        """Begin anew those of an average that is shown, as plain means over batches; until `settled`."""
        for norm in self.norms[name]:
            norm.reset_running_stats()
        return self.norms[name]

    def settled(self, name: str) -> None:
        """The statistics of an average were taken."""
        self.stale.discard(name)

    def tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        """What a checkpoint holds: a model, a name, this rank's part; of an equal average statistics, too.

        None may be shown.
        """
        for name in self.specs:
            own, statistics = self.held[name].weights(), self._own_statistics(name)
            parts, kept = self.parts[name], self.statistics[name]
            if not self._has_begun(name):
                parts, kept = [part for _, part in own], [buffer for _, buffer in statistics]
            for (key, _), part in zip(own, parts, strict=True):
                yield name, key, part
            for (key, _), buffer in zip(statistics, kept, strict=True):
                yield name, key, buffer

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], counts: Mapping[str, int]) -> None:
        """Take up whole tensors by model and name, and how far they had come."""
        self.counts |= {name: counts[name] for name in self.counts.keys() & counts.keys()}
        for name, given in tensors.items():
            held = self.held[name]
            for (key, _), part in zip(held.weights(), self.parts[name], strict=True):
                part.copy_(held.part(key, given[key]))
            for (key, _), kept in zip(self._own_statistics(name), self.statistics[name], strict=True):
                kept.copy_(given[key])

    def close(self) -> None:
        """Let go of them and of their models."""
        for held in (self.held, self.parts, self.norms, self.statistics, self.specs):
            held.clear()

    def _has_begun(self, name: str) -> bool:
        """An equal average that has taken in nothing is its model itself."""
        return bool(self.counts[name]) or isinstance(self.specs[name], ExponentialAverage)

    def _take_in(self, name: str, share: float) -> None:
        torch._foreach_lerp_(self.parts[name], [own for _, own in self.held[name].weights()], share)

    @torch.no_grad()
    def _exchange(self, name: str) -> None:
        pairs = list(zip(self.parts[name], (own for _, own in self.held[name].weights()), strict=True))
        statistics = (buffer for _, buffer in self._own_statistics(name))
        pairs += zip(self.statistics[name], statistics, strict=True)
        for part, own in pairs:
            kept = own.clone()
            own.copy_(part)
            part.copy_(kept)
        self.held[name].refresh()

    def _own_statistics(self, name: str) -> Named:
        """The running statistics of the model of an equal average, by name."""
        kept = {id(buffer) for norm in self.norms[name] for buffer in norm.buffers(recurse=False)}
        return [(key, own) for key, own in self.held[name].module.named_buffers() if id(own) in kept]
