"""The one interface between the loop and the hardware, and the way to open an engine."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from dtrain.data.order import MicroBatch
from dtrain.data.source import Batch
from dtrain.spec.lengths import Pace
from dtrain.systems.base import Array, Logs, Models, Ops, Phase

Key = tuple[int | str, ...]
Batches = Iterable[tuple[MicroBatch, Batch]]  # one rank's of one update
Part = str  # "models", "optimizers" or "averages"


@dataclass(frozen=True)
class Fault:
    """Numbers of an update that are not finite: of a loss, or of a gradient or weights though the loss was.

    It is the same on every rank, and for any number of them.
    """

    update: int  # its number
    where: Literal["loss", "gradient", "weights"]
    values: Mapping[str, float]  # the loss and all its terms; or those parameters that are not finite
    model: str = ""  # whose gradient or weights
    micro_batch: int = -1  # the first whose loss is not finite


@dataclass(frozen=True)
class Measured:
    """What one update showed, still on the device: averaged only when somebody asks."""

    terms: Sequence[tuple[Array | float, Logs]]  # weight and terms of each micro-batch of this rank
    norms: Mapping[str, Array] = field(default_factory=dict)  # gradient norm of each model, over all ranks
    skipped: Fault | None = None  # why the update moved nothing; None where it did


@dataclass(frozen=True)
class Update:
    """One optimizer update as all ranks see it."""

    phase: Phase
    key: Key  # (seed, "update", number): what is random in it
    step: int  # of the run, counted from 0: what weights of losses go by
    pace: Pace  # of the run
    size: int  # examples over all ranks
    micro_batches: int  # their number over all ranks
    settings: Mapping[str, Mapping[str, Any]]  # by model: its "lr", and what else a schedule moves
    measure: bool  # whether its gradient norms will be asked for

    @property
    def number(self) -> int:
        """Which update of the run it is, counted from 0."""
        return int(self.key[-1])


class Engine(Protocol):
    """Owns models and optimizers, however they are wrapped or sharded.

    `update` is the whole of an optimizer update: precision, micro-batches, synchronisation of
    gradients, clipping and freezing happen inside it and are visible nowhere else.
    """

    rank: int
    world: int
    device_type: str  # "cpu" or "cuda"
    begun: list[str]  # of each model that began with the weights of a file, which these were

    def update(self, update: Update, batches: Batches) -> Measured:
        """Make one update from this rank's micro-batches."""
        ...

    def stepped(self, step: int) -> None:
        """Hear that all updates of a step, counted from 0, are done: some averages go by steps."""
        ...

    def stale(self) -> list[str]:
        """The models whose averages need the statistics of their batch normalisations taken anew."""
        ...

    def take_statistics(self, name: str, updates: Iterable[tuple[Update, Batches]]) -> None:
        """Take them from forward passes of an average as in these updates, which nothing else notices."""
        ...

    def fault(self, *, weights: bool = False) -> Fault | None:
        """The first update, of those since the start, that showed numbers which are not finite; None if none.

        Every rank asks at once. With `weights` those of the trained models are looked through, too.
        """
        ...

    def run(self, function: Callable[[Models, Batch, Ops], Any], batch: Batch, *, key: Key) -> Any:
        """Call a system's function with every model frozen, in evaluation mode, averages in place."""
        ...

    def mean(self, terms: Sequence[tuple[Array | float, Logs]]) -> dict[str, float]:
        """Weighted means over all micro-batches of all ranks: one collective, the only host sync."""
        ...

    def sizes(self) -> Iterator[tuple[Part, str, int]]:
        """The bytes of every tensor of the state, under its canonical name: `generator/3.weight/exp_avg`."""
        ...

    def tensors(self) -> Iterator[tuple[Part, str, Array]]:
        """Every tensor of the state under its name, in the order of `sizes`, whole on every rank.

        Every rank asks for each at once; it may be the very tensor that is trained.
        """
        ...

    def digests(self) -> Mapping[str, int | Array]:
        """A number for each tensor of the state, `models/generator/3.weight`, in which no bit changes alone.

        By exclusive or those of all ranks make up that of the whole. A number on a device is not waited for.
        """
        ...

    def scalars(self) -> dict[str, Any]:
        """The rest of the state, as JSON takes it."""
        ...

    def restore(self, tensors: Mapping[Part, Mapping[str, Array]], scalars: Mapping[str, Any]) -> None:
        """Take up a state. Raises CheckpointError naming what is missing, unexpected or of another shape."""
        ...

    def close(self) -> None:
        """Let go of models, optimizers and device memory."""
        ...

    def share(self, value: Any) -> Any:
        """Rank 0's value, on every rank; of what JSON holds."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank, by rank; of what JSON holds."""
        ...

    def gather_arrays(self, array: Array) -> list[Array]:
        """Every rank's array, on every rank, by rank; they may differ in length, but not in other axes."""
        ...
