"""A system says what is trained: an ordered list of phases over named models."""

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Annotated, Any, ClassVar, Protocol

from dtrain.data.source import Field
from dtrain.spec.models import Model
from dtrain.spec.table import Imported, OneOf, Table

Array = Any  # torch.Tensor or jax.Array
Batch = Mapping[str, Array]  # field -> values, batch axis first
Logs = Mapping[str, Array]  # term -> scalar, a mean over the examples of a micro-batch
Models = Any  # the models by attribute: models.generator(z)


@dataclass(frozen=True)
class Loss:
    """The loss of one micro-batch.

    `value` is a mean over `weight` items; the update's gradient is the mean over the items of all
    micro-batches of all processes, whatever their sizes. `weight` is the number of examples unless
    given, as with tokens: a number, or a scalar array.
    """

    value: Array  # ()
    terms: Logs = dataclass_field(default_factory=dict)  # parts of it, and what else is worth a curve
    weight: Array | None = None


class Ops(Protocol):
    """What a loss needs beyond what arrays of all backends can do by themselves.

    Whatever is random comes from here, and depends on (seed, update, micro-batch) alone.
    """

    def normal(self, *shape: int) -> Array:
        """Numbers from N(0, 1), in the precision of the models."""
        ...

    def uniform(self, *shape: int) -> Array:
        """Numbers from U(0, 1), in the precision of the models."""
        ...

    def relu(self, x: Array) -> Array:
        """max(x, 0)."""
        ...

    def softplus(self, x: Array) -> Array:
        """log(1 + exp(x)), without overflow."""
        ...

    def cross_entropy(self, logits: Array, labels: Array, *, smoothing: float = 0.0) -> Array:
        """Mean cross-entropy of logits (N, classes) and labels (N,); `smoothing` goes to all classes."""
        ...

    def norm(self, x: Array) -> Array:
        """Euclidean length of each example, (N,); its slope at 0 is 0."""
        ...

    def detach(self, x: Array) -> Array:
        """The same values; no gradient flows through them."""
        ...

    def call(self, imported: Imported, prediction: Array, target: Array, *, at: str) -> Array:
        """What a loss or a metric given by an import path makes of predictions and targets: a scalar.

        It must be a mean over the examples: so it is averaged over micro-batches by how many each has.
        `at` is its key in the recipe, for errors.
        """
        ...

    def input_gradient(self, function: Callable[[Array], Array], x: Array) -> Array:
        """Slope of sum(function(x)) in x, of the shape of x; itself differentiable, for penalties."""
        ...


@dataclass(frozen=True)
class Phase:
    """One kind of optimizer update: whose weights move, down which loss.

    Inside `loss` only the models in `updates` can be trained. Inside `prepare` none can: its
    result replaces the batch, and no gradient flows through it.
    """

    updates: tuple[str, ...]
    loss: Callable[[Models, Batch, Ops], Loss]
    prepare: Callable[[Models, Batch, Ops], Batch] | None = None
    repeat: int = 1  # updates in a step, each on fresh data
    every: int = 1  # only on steps divisible by it, counted from 0

    @property
    def label(self) -> str:
        """What its terms are logged under."""
        return "+".join(self.updates)


class System(Table):
    """Base of all systems: a frozen dataclass whose fields are the keys of `[system]`."""

    evaluates: ClassVar[tuple[str, ...]] = ()  # what `evaluate` gives, where that is always the same

    @abstractmethod
    def phases(self) -> Sequence[Phase]:
        """The phases of one step, in order."""

    def check(self, models: Mapping[str, Model]) -> Iterable[ValueError] | None:
        """Raise ValueError if two models do not fit together, or yield several; nothing is built yet.

        A `Wrong` names the key to mend; all models that the phases update or that read data are there.
        """
        return None

    def reads(self) -> Mapping[str, str | None]:
        """The fields of a batch that it reads, each with the model that it goes into as it is."""
        return {}

    def check_data(self, models: Mapping[str, Model], fields: Mapping[str, Field]) -> None:
        """Raise ValueError if data with these fields is not what it needs, beyond what `reads` says."""
        return None

    def evaluate(self, models: Models, batch: Batch, ops: Ops) -> Logs:
        """Means over the examples of one micro-batch of evaluation data."""
        return {}

    def predict(self, models: Models, batch: Batch, ops: Ops) -> tuple[Array, Array] | None:
        """Predictions and targets for the recipe's own metrics; None of a system that predicts nothing."""
        return None

    def samples(self, models: Models, batch: Batch, ops: Ops) -> Mapping[str, Array]:
        """Pictures worth looking at, (N, channels, height, width), in the range of the data."""
        return {}


AnySystem = Annotated[System, OneOf(System)]
AnyLoss = Annotated[Imported, OneOf(Imported)]  # a field of a system's own: what `Ops.call` takes


def updates_before(phases: Sequence[Phase], step: int) -> int:
    """How many updates the first `step` steps make: the position in the data, as one number."""
    return sum(phase.repeat * -(-step // phase.every) for phase in phases)


def steps_for(phases: Sequence[Phase], updates: int) -> int:
    """The fewest steps that make at least so many updates."""
    return bisect_left(range(updates + 1), updates, key=lambda step: updates_before(phases, step))
