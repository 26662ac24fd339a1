"""A system says what is trained: an ordered list of phases over named models."""

from abc import abstractmethod
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from dtrain.data.source import Field
from dtrain.spec.models import Model
from dtrain.spec.table import Imported, OneOf, Table
from dtrain.systems.ops import Array as Array
from dtrain.systems.ops import Ops as Ops

Batch = Mapping[str, Array]  # field -> values, batch axis first
Logs = Mapping[str, Array]  # term -> scalar, a mean over the examples of a micro-batch
Models = Any  # the models by attribute: models.generator(z)
Predicted = tuple[Array, Array]  # predictions and their targets, batch axis first
Mode = Literal["max", "min"]  # which value of a metric is best


@dataclass(frozen=True)
class Loss:
    """The loss of one micro-batch.

    `value` is a mean over `weight` items; the update's gradient is the mean over the items of all
    micro-batches of all processes, whatever their sizes; and so are the `terms` that are logged. `weight`
    is the number of examples unless given, as with tokens: a number, or a scalar array.
    """

    value: Array  # ()
    terms: Logs = dataclass_field(default_factory=dict)  # parts of it, and what else is worth a curve
    weight: Array | None = None


@dataclass(frozen=True)
class Evaluation:
    """What one micro-batch of evaluation data shows, where means over its examples do not say it all.

    `terms` are means over `weight` items, and the run's figures are the means over the items of all
    micro-batches. `weight` is the number of examples unless given, as with tokens: a number, or a scalar
    array. `predicted` is what `predict` would give, where it is at hand: it saves a second forward.
    """

    terms: Logs
    weight: Array | None = None
    predicted: Predicted | None = None


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

    # What `evaluate` gives, where that is always the same, and which value of each is best, where one is.
    evaluates: ClassVar[Mapping[str, Mode | None]] = MappingProxyType({})

    @abstractmethod
    def phases(self) -> Sequence[Phase]:
        """The phases of one step, in order."""

    def joined(self, models: Mapping[str, Model]) -> "System":
        """The system with what the models' tables say for it, where it reads them."""
        return self

    def trains(self) -> Sequence[tuple[str, ...]]:
        """The models that each phase updates."""
        return [phase.updates for phase in self.phases()]

    @property
    def has_slopes(self) -> bool:
        """Whether a loss has slopes of models in it, as a gradient penalty has, so far as can be told."""
        return False

    def needs(self) -> Sequence[str]:
        """The models that it trains, or feeds with data."""
        trained = [name for names in self.trains() for name in names]
        return list(dict.fromkeys([*trained, *filter(None, self.reads().values())]))

    def check(self, models: Mapping[str, Model]) -> Iterable[ValueError] | None:
        """Raise ValueError if two models do not fit together, or yield several; nothing is built yet.

        A `Wrong` names the key to mend; all models that the phases update or that read data are there.
        """
        return None

    def reads(self) -> Mapping[str, str | None]:
        """The fields of a batch that it reads, each with the model that it goes into as it is."""
        return {}

    def check_data(
        self, models: Mapping[str, Model], fields: Mapping[str, Field]
    ) -> Iterable[ValueError] | None:
        """Raise ValueError if data with these fields is not what it needs, beyond what `reads` says.

        Or yield several.
        """
        return None

    def evaluate(self, models: Models, batch: Batch, ops: Ops) -> Logs | Evaluation:
        """Metrics of one micro-batch of evaluation data: means over its examples, as a plain mapping.

        Or an Evaluation, where they are means over something else, such as tokens, or where what `predict`
        gives is at hand anyway. Every example is evaluated once, so the means are exact whatever the sizes of
        micro-batches. What is no mean (an area, an exponential) is for the metrics of a recipe.
        """
        return {}

    def predict(self, models: Models, batch: Batch, ops: Ops) -> Predicted | None:
        """Predictions and targets, which the metrics that a recipe names are computed from.

        Classes: logits (N, classes), labels (N). Tokens: logits (N, length, classes) and the tokens that they
        are for, (N, length); labels below 0, such as those of padding, count for nothing. Pictures: what was
        made or reconstructed, and the true ones, both (N, channels, height, width). It is called only if the
        recipe names metrics and `evaluate` does not give its result along. None: it predicts nothing.
        """
        return None

    @property
    def predicts(self) -> bool:
        """Whether `predict` gives anything."""
        return type(self).predict is not System.predict

    def samples(self, models: Models, batch: Batch, ops: Ops) -> Mapping[str, Array]:
        """What is worth looking at: pictures (N, channels, height, width) in the range of the data, or texts.

        Of these, the tokens (N, length), as whole numbers; the data says how they are spelt.
        """
        return {}


AnySystem = Annotated[System, OneOf(System)]
AnyLoss = Annotated[Imported, OneOf(Imported)]  # a field of a system's own: what `Ops.call` takes


def distinct(names: Iterable[str]) -> list[str]:
    """The same names, with a number behind those that came before: two phases may train one model."""
    counts: Counter[str] = Counter()
    found = []
    for name in names:
        counts[name] += 1
        found.append(name if counts[name] == 1 else f"{name}-{counts[name]}")
    return found


def updates_before(phases: Sequence[Phase], step: int) -> int:
    """How many updates the first `step` steps make: the position in the data, as one number."""
    return sum(phase.repeat * -(-step // phase.every) for phase in phases)


def steps_for(phases: Sequence[Phase], updates: int) -> int:
    """The fewest steps that make at least so many updates."""
    return bisect_left(range(updates + 1), updates, key=lambda step: updates_before(phases, step))
