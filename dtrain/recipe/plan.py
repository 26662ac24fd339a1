"""What a recipe will do, worked out without building anything: layers, updates, memory, size."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from dtrain.recipe.values import Recipe, Train
from dtrain.spec.groups import shares, trainable
from dtrain.spec.initial import Shape
from dtrain.spec.lengths import Pace
from dtrain.spec.models import Model, ModelSpec
from dtrain.spec.optimizer_state import STEP, kept
from dtrain.spec.optimizers import Optimizer
from dtrain.systems.base import System, steps_for


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    weights: int
    gradients: int
    optimizers: int
    averages: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizers + self.averages + self.activations


def total_steps(recipe: Recipe, examples: int | None) -> int | None:
    """Steps of the whole run; None where only a run can tell."""
    pace = pace_of(recipe.train, recipe.system, examples)
    return None if pace is None else pace.total


def pace_of(train: Train, system: Any, examples: int | None) -> Pace | None:
    """The pace of a run on so many examples, where they are known; None where only a run can tell its length.

    Of a system that is not imported yet nobody knows how many updates a step makes.
    """
    phases = system.phases() if isinstance(system, System) else ()
    known = examples if isinstance(system, System) else None
    total = train.steps
    if total is None and known is not None:
        total = steps_for(phases, (train.epochs or 0) * -(-known // train.batch_size))
    if total is None:
        return None
    return Pace(total, known, train.batch_size, partial(steps_for, phases))


def plan_memory(recipe: Recipe, processes: int = 1) -> Memory | None:
    """An estimate for each of some processes that have models whole; None where one's size is unknown.

    Gradients are those of the largest model; with lanes, of each lane of a process. Activations count every
    layer's output once for each model that a phase calls, in the precision of the run; what kernels need
    besides, and the process itself, is not counted.
    """
    counts = parameter_counts(recipe)
    if counts is None:
        return None
    size = 8 if recipe.train.precision == "fp64" else 4
    half = 2 if recipe.train.precision in ("bf16", "fp16") else size
    outputs = sum(
        (half if model.precision is None else size) * math.prod(row.after)
        for model in recipe.models.values()
        if isinstance(model, ModelSpec)
        for row in model.rows()
    )
    trained = [name for name in recipe.models if name in recipe.optimizers]
    return Memory(
        weights=size * sum(counts.values()),
        gradients=size
        * (1 + (recipe.train.lanes or 0) // processes)
        * max((counts[name] for name in trained), default=0),
        optimizers=size * sum(numbers_kept(recipe.optimizers[name], recipe.models[name]) for name in trained),
        averages=size * sum(counts[name] for name in recipe.averages),
        activations=outputs * recipe.train.micro,
    )


def checkpoint_size(recipe: Recipe) -> int | None:
    """Bytes of the tensors in one checkpoint; None where a model is imported."""
    memory = plan_memory(recipe)
    return None if memory is None else memory.weights + memory.optimizers + memory.averages


def parameter_counts(recipe: Recipe) -> Mapping[str, int] | None:
    """Trained numbers of each model; None if one is imported, or a layer of one."""
    known = {n: m for n, m in recipe.models.items() if isinstance(m, ModelSpec) and not m.imports_layers}
    if len(known) < len(recipe.models):
        return None
    return {name: model.parameter_count() for name, model in known.items()}


def numbers_kept(optimizer: Optimizer, model: Model) -> int:
    """How many numbers an optimizer keeps of a model without anything imported."""
    assert isinstance(model, ModelSpec)
    own = trainable(model)
    assert own is not None
    return sum(
        _count(share.optimizer, own.shapes[name]) for share in shares(optimizer, own) for name in share.names
    )


def _count(optimizer: Optimizer, shape: Shape) -> int:
    """How many numbers an optimizer keeps for a parameter; of an imported one twice as many are assumed.

    A count of the steps is left out.
    """
    known = kept(optimizer, shape)
    if known is None:
        return 2 * math.prod(shape)
    return sum(math.prod(each) for name, each in known.items() if name != STEP)
