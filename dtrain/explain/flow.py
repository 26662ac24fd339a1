"""What a function of a system computes: values, what each is made of, and how far gradients flow back."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

# field: of the data; noise: drawn; constant: made of nothing that is recorded; weights: a parameter that is
# used by itself; model: what a model gives; stop: a value whose gradient is dropped; part: one of several
# values that a call gave; function: any other call.
Kind = Literal["field", "noise", "constant", "weights", "model", "stop", "part", "function"]

SUMS = ("add", "sub")  # calls that a loss is taken apart at
T = TypeVar("T")


@dataclass(eq=False)
class Value:
    """What one call gave: an array, or several of them, whose `part`s follow."""

    number: int  # in the order of the calls
    kind: Kind
    call: str  # what was called: `softplus`, a model's name; of a field its name
    arguments: tuple[Any, ...] = ()  # values, numbers, names of models, and tuples of these
    options: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments
    reads: tuple["Value", ...] = ()  # what the call used besides its arguments
    models: frozenset[str] = frozenset()  # those that were called in it
    shape: tuple[int, ...] | None = None  # batch axis first; None of several arrays
    carries: bool = False  # whether gradients from here reach weights that are trained
    flows: frozenset[int] = frozenset()  # numbers of the inputs that gradients flow back to
    is_prepared: bool = False  # computed in `prepare`, where every model is frozen
    name: str = ""  # the variable that held it

    @property
    def inputs(self) -> list["Value"]:
        """The values that it is made of, each once, in order."""
        found = [*values_in(self.arguments), *values_in(tuple(self.options.values())), *self.reads]
        return list({value.number: value for value in found}.values())


@dataclass(frozen=True)
class Reach:
    """Where gradients from a value arrive: by trained model, how many of its parameters get one."""

    parameters: Mapping[str, int]

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(name for name, count in self.parameters.items() if count)


@dataclass(frozen=True)
class Flow:
    """One phase, or an evaluation, followed once."""

    trained: tuple[str, ...]  # models whose weights move; none in an evaluation
    averaged: tuple[str, ...]  # models in whose place their average stands
    values: tuple[Value, ...]  # in the order in which they were computed
    fields: Mapping[str, Value]  # what the loss finds in its batch
    results: Mapping[str, Value]  # by name: the loss first and then its terms; of an evaluation its metrics
    reach: Mapping[int, Reach]  # of the loss, its summands and its terms, by the number of the value
    weight: Value | None = None  # how many items the loss is a mean over, where it says so

    @property
    def loss(self) -> Value:
        """The value that is minimised."""
        return self.results["loss"]

    def needed(self, *ends: Value) -> list[Value]:
        """The values that these are made of, themselves included, in order."""
        found: dict[int, Value] = {}
        waiting = list(ends)
        while waiting:
            value = waiting.pop()
            if value.number not in found:
                found[value.number] = value
                waiting.extend(value.inputs)
        return [found[number] for number in sorted(found)]

    def called(self) -> tuple[str, ...]:
        """The models that its results depend on, in the order of their first call."""
        names = (name for value in self.needed(*self.results.values()) for name in sorted(value.models))
        return tuple(dict.fromkeys(names))

    def frozen(self) -> tuple[str, ...]:
        """Those of them that are not trained."""
        return tuple(name for name in self.called() if name not in self.trained)

    def through(self) -> tuple[str, ...]:
        """Frozen models that gradients flow back through, on the way from the loss to what is trained."""
        passed = [value for value in self.needed(self.loss) if value.flows and not value.is_prepared]
        names = (name for value in passed for name in sorted(value.models) if name not in self.trained)
        return tuple(dict.fromkeys(names))

    def stops(self) -> list[tuple[Value, list[Value]]]:
        """On the way to the loss, every value that keeps gradients from inputs that would carry them.

        A `detach` is among them even where no gradient would come, and so is what a trained model gave
        without a gradient: their inputs are then none.
        """
        found = []
        for value in self.needed(self.loss):
            kept = [item for item in value.inputs if item.carries and item.number not in value.flows]
            is_cut = not value.carries and bool(value.models & set(self.trained)) and not value.is_prepared
            if kept or is_cut or value.kind == "stop":
                found.append((value, kept))
        return found


def summands(value: Value) -> list[Value]:
    """What a sum or a difference is made of, as far as it goes; the value itself if it is none."""
    found, waiting = [], [value]
    while waiting:
        value = waiting.pop()
        parts = [item for item in value.arguments if isinstance(item, Value)]
        if value.kind == "function" and value.call in SUMS and parts:
            waiting += reversed(parts)
        else:
            found.append(value)
    return found


def values_in(items: Any) -> Iterator[Value]:
    """Every value inside tuples and tables."""
    yield from (item for item in leaves(items) if isinstance(item, Value))


def leaves(items: Any) -> Iterator[Any]:
    """What stands inside tuples, lists and tables, however deep."""
    if isinstance(items, Mapping):
        items = tuple(items.values())
    if isinstance(items, Sequence) and not isinstance(items, str):
        for item in items:
            yield from leaves(item)
    elif isinstance(items, slice):
        yield from (items.start, items.stop, items.step)
    else:
        yield items
