"""Every call on arrays while a function of a system runs: of a model, of an op, of a tensor's method."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dtrain.explain.flow import Kind, Value, leaves, values_in
from dtrain.explain.gradients import Edge, edges, reached
from dtrain.explain.variables import variables
from dtrain.spec.table import Imported

NOISE = {"normal", "uniform", "bernoulli", "randn", "rand", "randint", "randperm", "randn_like", "rand_like"}
STOPS = {"detach", "detach_", "data"}
SILENT = (
    "torch",
    "dtrain.explain",
    "dtrain.backends",
    "dtrain.systems.base",
)  # modules whose variables name nothing


@dataclass
class Call:
    """A call under way that is noted as one: what happens inside of it is its own affair."""

    owner: Any
    first: int  # number of the first value that is none of its inputs
    models: set[str] = field(default_factory=set)
    reads: dict[int, Value] = field(default_factory=dict)  # what was used from outside, by number


@dataclass(frozen=True)
class Called:
    """A function given as an argument; the models that it turned out to call."""

    name: str
    models: set[str]

    @property
    def text(self) -> str:
        """`surprise(x; classifier)`; of a model its name."""
        inside = ", ".join(sorted(self.models - {self.name}))
        name = "function" if self.name == "<lambda>" else self.name
        return f"{name} of {inside}" if inside else name


class Recorder(TorchFunctionMode):
    """Notes what is computed inside a `with` block, as values."""

    def __init__(self, modules: Mapping[str, nn.Module]):
        super().__init__()
        self.modules = modules
        self.values: list[Value] = []
        self.is_preparing = False
        self.under_way: Call | None = None
        self.paths = {
            id(child): f"{name}.{path}" if path else name
            for name, module in reversed(list(modules.items()))
            for path, child in module.named_modules()
        }
        self.weights = {
            id(p): f"{name}.{key}" for name, module in modules.items() for key, p in module.named_parameters()
        }
        self._known: dict[int, Value] = {}  # by the id of the array
        self._edges: dict[int, frozenset[Edge]] = {}
        self._kept: list[Any] = []  # arrays stay alive, so that no id comes twice

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.under_way is not None:
            self._note_reads((args, kwargs))
            return func(*args, **kwargs)
        name = func.__name__ if func.__name__ != "__get__" else func.__self__.__name__
        return self._noted(_plain(name), func, args, kwargs)

    def field(self, name: str, tensor: Tensor, source: Value | None = None) -> Value:
        """Note a field of the batch; `source` is what `prepare` made of it."""
        kind: Kind = "field" if source is None else "stop"
        value = self._new(kind, name if source is None else "prepared", (source,) if source else (), tensor)
        value.name = name
        value.is_prepared = source is not None
        return value

    def value_of(self, tensor: Tensor) -> Value:
        """The value that an array is; one that nobody computed here is a constant, or a model's weights."""
        if id(tensor) in self._known:
            return self._known[id(tensor)]
        weights = self.weights.get(id(tensor))
        value = self._new("weights" if weights else "constant", weights or "constant", (), tensor)
        if weights:
            value.models = frozenset([weights.split(".")[0]])
        return value

    def edges_of(self, value: Value) -> frozenset[Edge]:
        """Where its gradient enters autograd's graph."""
        return self._edges[value.number]

    @contextmanager
    def following(self) -> Iterator[None]:
        """Note what is called inside, and which variables hold it."""
        hooks = [hook for module in self.modules.values() for hook in self._hooks(module)]
        before = sys.getprofile()
        sys.setprofile(self._name_variables)
        try:
            with self:
                yield
        finally:
            sys.setprofile(before)
            for hook in hooks:
                hook.remove()

    def wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """An op whose calls are noted, each as one, whatever it calls itself."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.under_way is not None:
                return function(*args, **kwargs)
            return self._noted(name, function, args, kwargs)

        return call

    def _noted(self, name: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What a function gives, noted as one call."""
        done = self._begin(name, args, kwargs)
        try:
            made = function(*args, **kwargs)
            if args and isinstance(args[0], Imported):  # `Ops.call`; its key in the recipe says nothing here
                name, args, kwargs = args[0].path.rpartition(":")[2], args[1:], {}
            self._add(name, args, _said(function, kwargs), made, done)
        finally:
            self.under_way = None
        return made

    def _hooks(self, module: nn.Module) -> Iterator[Any]:
        for child in module.modules():
            yield child.register_forward_pre_hook(self._enter, with_kwargs=True)
            yield child.register_forward_hook(self._leave, with_kwargs=True)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.under_way is None:
            self._begin(module, args, kwargs)
        assert self.under_way is not None
        self.under_way.models.add(self.paths[id(module)].split(".")[0])

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, made: Any) -> None:
        done = self.under_way
        if done is not None and done.owner is module:
            self._add(self.paths[id(module)], args, kwargs, made, done)
            self.under_way = None

    def _begin(self, owner: Any, args: Any, kwargs: Any) -> Call:
        """A call is under way; every array among its arguments has a number below those that follow."""
        self.under_way = call = Call(owner, 0)
        for tensor in _tensors((args, kwargs)):
            self.value_of(tensor)
        call.first = len(self.values)
        return call

    def _note_reads(self, arguments: Any) -> None:
        if self.under_way is not None:
            for tensor in _tensors(arguments):
                value = self._known.get(id(tensor))
                if value is not None and value.number < self.under_way.first:
                    self.under_way.reads[value.number] = value

    def _add(self, call: str, args: Any, kwargs: Any, made: Any, done: Call) -> None:
        """Note what a call gave, unless that is one of its arguments as it was."""
        tensors = list(_tensors(made))
        if not tensors:
            return
        is_model, models = isinstance(done.owner, nn.Module), done.models
        arguments = tuple(self._argument(item, models) for item in args)
        options = {name: self._argument(item, models) for name, item in kwargs.items()}
        inputs = list(values_in((arguments, options)))
        in_place = call.endswith("_") and not call.startswith("_")
        if not (in_place or is_model) and any(self._known.get(id(tensor)) in inputs for tensor in tensors):
            return
        kind: Kind = "model" if is_model else "stop" if call in STOPS else "function"
        if call in NOISE and not inputs:
            kind = "noise"
        elif kind == "function" and not inputs and not models:
            kind = "constant"
        given = {value.number for value in inputs}
        reads = tuple(value for value in done.reads.values() if value.number not in given)
        value = self._new(kind, call.rstrip("_") if in_place else call, arguments, made, options, reads)
        value.models = frozenset(models) | value.models
        if not isinstance(made, Tensor):
            for place, tensor in enumerate(tensors):
                self._new("part", "part", (value, place), tensor)

    def _new(
        self,
        kind: Kind,
        call: str,
        arguments: tuple[Any, ...],
        made: Any,
        options: Mapping[str, Any] | None = None,
        reads: tuple[Value, ...] = (),
    ) -> Value:
        number = len(self.values)
        shape = tuple(made.shape) if isinstance(made, Tensor) else None
        value = Value(number, kind, call, arguments, options or {}, reads, shape=shape)
        value.is_prepared = self.is_preparing
        tensors = list(_tensors(made))
        start = edges(tensors)
        before = {item.number: self._edges[item.number] for item in value.inputs}
        value.flows, comes_to_weights = reached(start, before, self.weights)
        value.carries = bool(value.flows) or comes_to_weights
        self._edges[number] = start if value.carries else frozenset()
        self.values.append(value)
        self._kept.append(made)
        if isinstance(made, Tensor):
            self._known[id(made)] = value
        return value

    def _argument(self, item: Any, models: set[str]) -> Any:
        """An argument as a value stores it."""
        if isinstance(item, Tensor):
            return self.value_of(item)
        if isinstance(item, nn.Module):
            return Called(self.paths.get(id(item), type(item).__name__), models)
        if isinstance(item, Mapping):
            return {key: self._argument(inner, models) for key, inner in item.items()}
        if isinstance(item, slice):
            return slice(*(self._argument(end, models) for end in (item.start, item.stop, item.step)))
        if isinstance(item, list | tuple):
            return tuple(self._argument(inner, models) for inner in item)
        if callable(item) and not isinstance(item, type):
            return Called(getattr(item, "__name__", type(item).__name__), models)
        return item

    def _name_variables(self, frame: FrameType, event: str, _: Any) -> None:
        """When a function of a system returns, its variables name what they hold; its caller's name wins.

        Python's profiler calls this, as it is the one that tells when a function returns.
        """
        if event != "return" or self.under_way is not None:
            return
        for name, item in variables(frame):
            value = self._known.get(id(item)) if isinstance(item, Tensor) else None
            if value is not None and value.kind not in ("field", "weights") and value.call != "prepared":
                value.name = name


def _said(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Of keyword arguments, those that differ from what is their default."""
    try:
        parameters = signature(function).parameters
    except (TypeError, ValueError):  # of a function in C
        return dict(options)
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    return {
        k: item for k, item in options.items() if isinstance(item, Tensor) or item != defaults.get(k, ...)
    }


def _tensors(items: Any) -> Iterator[Tensor]:
    yield from (item for item in leaves(items) if isinstance(item, Tensor))


def _plain(name: str) -> str:
    """`__rsub__` as `rsub`."""
    return name[2:-2] if name.startswith("__") and name.endswith("__") else name
