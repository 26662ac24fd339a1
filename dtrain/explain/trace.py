"""A recipe's phases and its evaluation, each followed once on a made-up micro-batch; nothing is trained."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from dtrain.backends.torch_backend import trained_parameters
from dtrain.backends.torch_imported import Site, build_imported_model
from dtrain.backends.torch_layers import stack
from dtrain.backends.torch_ops import TorchOps
from dtrain.data.source import Field
from dtrain.errors import DtrainError
from dtrain.explain.flow import Flow, Value, summands
from dtrain.explain.gradients import reach_of
from dtrain.explain.names import name_values
from dtrain.explain.record import Recorder
from dtrain.explain.recorded_ops import RecordedOps
from dtrain.recipe.plan import plan_memory
from dtrain.recipe.values import Recipe
from dtrain.spec.models import Model, ModelSpec
from dtrain.spec.trust import EVERYTHING, Trust
from dtrain.systems.base import Evaluation, Phase, System

LARGE = 2e9  # bytes
META, CPU = torch.device("meta"), torch.device("cpu")


class Tracer:
    """A recipe's models, and a micro-batch like those that it trains on."""

    def __init__(self, recipe: Recipe, fields: Mapping[str, Field], device: torch.device, trust: Trust):
        assert isinstance(recipe.system, System)
        self.recipe, self.system, self.device = recipe, recipe.system, device
        dtype = torch.float64 if recipe.train.precision == "fp64" else torch.float32
        self.ops = TorchOps(device, dtype, trust)
        self.modules = {
            name: built(name, spec, recipe.seed, device, trust).to(dtype).train(name in recipe.optimizers)
            for name, spec in recipe.models.items()
        }
        self.parameters = {
            name: list(trained_parameters(module).values()) for name, module in self.modules.items()
        }
        for module in self.modules.values():
            module.requires_grad_(False)
        with device:
            self.batch = {name: _like(field, recipe.train.micro, dtype) for name, field in fields.items()}

    def phase(self, phase: Phase) -> Flow:
        """Follow what an engine does in one update of a phase."""
        recorder = Recorder(self.modules)
        for name, tensor in self.batch.items():
            recorder.field(name, tensor)
        batch: Mapping[str, Tensor] = self.batch
        if phase.prepare is not None:
            batch = self._prepared(phase.prepare, recorder)
        with self._training(phase.updates), recorder.following():
            loss = phase.loss(SimpleNamespace(**self.modules), batch, self._ops(recorder))
        arrays = {"loss": loss.value, **loss.terms}
        results = _values(arrays, recorder)
        with self._training(phase.updates):
            trained = {name: self.parameters[name] for name in phase.updates}
            ends = {value.number: value for value in (*results.values(), *summands(results["loss"]))}
            reach = {n: reach_of(recorder.edges_of(value), trained) for n, value in ends.items()}
        fields = {name: recorder.value_of(tensor) for name, tensor in batch.items()}
        weight = recorder.value_of(loss.weight) if isinstance(loss.weight, Tensor) else None
        flow = Flow(phase.updates, (), tuple(recorder.values), fields, results, reach, weight)
        name_values(flow)
        return flow

    def evaluation(self) -> Flow:
        """Follow the evaluation of one micro-batch, with averages in the place of models that have one."""
        recorder = Recorder(self.modules)
        fields = {name: recorder.field(name, tensor) for name, tensor in self.batch.items()}
        models = SimpleNamespace(**self.modules)
        with torch.no_grad(), self._training(()), recorder.following():
            shown = self.system.evaluate(models, self.batch, self._ops(recorder))
        results = _values(shown.terms if isinstance(shown, Evaluation) else shown, recorder)
        averaged = tuple(name for name, average in self.recipe.averages.items() if average.evaluate)
        flow = Flow((), averaged, tuple(recorder.values), fields, results, {})
        name_values(flow)
        return flow

    def _prepared(self, prepare: Callable[..., Any], recorder: Recorder) -> Mapping[str, Tensor]:
        """What `prepare` makes of the batch, as the engine gives it to the loss: without gradients."""
        recorder.is_preparing = True
        with self._training(()), recorder.following():
            made = prepare(SimpleNamespace(**self.modules), self.batch, self._ops(recorder))
        kept = {name: made[name] is tensor for name, tensor in self.batch.items() if name in made}
        batch = {}
        for name, tensor in made.items():
            batch[name] = tensor if kept.get(name) else tensor.detach()
            if not kept.get(name):
                recorder.field(name, batch[name], recorder.value_of(tensor))
        recorder.is_preparing = False
        return batch

    def _ops(self, recorder: Recorder) -> Any:
        return RecordedOps(self.ops, recorder)

    @contextmanager
    def _training(self, names: Sequence[str]) -> Iterator[None]:
        """Let gradients reach the parameters of these models, but for those that came frozen."""
        own = [parameter for name in names for parameter in self.parameters[name]]
        for parameter in own:
            parameter.requires_grad_(True)
        yield
        for parameter in own:
            parameter.requires_grad_(False)


def trace(
    recipe: Recipe, fields: Mapping[str, Field], trust: Trust = EVERYTHING
) -> tuple[list[Flow], Flow | None]:
    """Follow every phase of a step, in order, and the evaluation; None of a system that evaluates nothing.

    The arrays are made up: numbers on the CPU, or where these would take much memory shapes alone, at first.
    Raises DtrainError, with what it raised, for a system that fails with them.
    """
    memory = plan_memory(recipe)
    problem: Exception
    # Shapes alone are no quicker: torch imports its symbolic algebra for them.
    for device in (META, CPU) if memory is not None and memory.total > LARGE else (CPU,):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            try:
                return _traced(recipe, fields, device, trust)
            except DtrainError:
                raise
            except Exception as error:  # the system is the user's, and may look at values
                problem = error
    said = f"{type(problem).__name__}: {problem}"
    raise DtrainError(f"{recipe.name} cannot be followed, as it raises {said}") from problem


def _traced(
    recipe: Recipe, fields: Mapping[str, Field], device: torch.device, trust: Trust
) -> tuple[list[Flow], Flow | None]:
    tracer = Tracer(recipe, fields, device, trust)
    phases = [tracer.phase(phase) for phase in tracer.system.phases()]
    evaluation = tracer.evaluation()
    return phases, evaluation if evaluation.results else None


def built(name: str, spec: Model, seed: int, device: torch.device, trust: Trust) -> nn.Module:
    """A model on a device, without the first weights of a run, which take time to draw."""
    with device:
        if isinstance(spec, ModelSpec):
            return stack(spec.layers, spec.input, Site(name, seed, trust))
        return build_imported_model(name, spec, seed=seed, trust=trust)


def _like(field: Field, count: int, dtype: torch.dtype) -> Tensor:
    """So many examples of a field: fractions drawn, whole numbers 0, which everywhere is a class, a token."""
    if field.holds_fractions:
        return torch.rand(count, *field.shape, dtype=dtype)
    return torch.zeros(count, *field.shape, dtype=getattr(torch, field.dtype))


def _values(arrays: Mapping[str, Any], recorder: Recorder) -> dict[str, Value]:
    """The values that results are; numbers that depend on nothing among them are constants."""
    return {name: recorder.value_of(torch.as_tensor(array)) for name, array in arrays.items()}
