"""A system says what is trained: an ordered list of phases over named models."""

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Annotated, Any, ClassVar

from dtrain.data.source import Field
from dtrain.spec.models import Model
from dtrain.spec.table import Imported, OneOf, Table
from dtrain.systems.ops import Array as Array
from dtrain.systems.ops import Ops as Ops

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
