"""Lengths in a run: in steps, or in epochs, examples or a share of it, which its pace turns into steps."""

import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from dtrain.spec.decode import fields_of
from dtrain.spec.table import Above0, Natural, Positive, Table, Within, Wrong, table

LONGEST = 2**62  # updates: what is longer than this is longer than any run


@table
class Span(Table):
    """A length that is not given in steps: `{ epochs = 2 }`, `{ examples = 50_000 }` or `{ share = 0.1 }`."""

    epochs: Above0 | None = None  # passes over the training examples, as in train.epochs; 0.5 is half of them
    examples: Positive | None = None  # that the updates of all phases have used
    share: Annotated[float, Within(above=0, at_most=1)] | None = (
        None  # of the run; inside a sequence of the part
    )

    def __post_init__(self) -> None:
        given = [name for name, value in vars(self).items() if value is not None]
        if len(given) != 1:
            said = f"give one of `epochs`, `examples` and `share`, not {len(given) or 'none'}"
            raise Wrong(given[1], said, is_key=True) if given else ValueError(said)


Length = Natural | Span  # a whole number is steps
Period = Positive | Span  # a length of which there may not be none


@dataclass(frozen=True)
class Pace:
    """How fast a run goes through its data, which turns every length into steps.

    An epoch means what it means in `train.epochs`: as many updates, over all phases, as one pass over the
    examples takes. A step with several updates, each on fresh data, so takes several batches of it.
    """

    total: int  # steps of the run
    examples: int | None  # of the training data; None where it is not opened yet
    batch_size: int  # examples of one update; the last update of an epoch may use fewer
    steps_for: Callable[[int], int]  # the fewest steps that make at least so many updates

    def steps(self, length: Length) -> int:
        """A length in steps; shares and parts of epochs are rounded to the nearest step and update.

        One that goes by the data needs the number of examples.
        """
        if isinstance(length, int):
            return length
        if length.share is not None:
            return round(length.share * self.total)
        assert self.examples is not None
        an_epoch = -(-self.examples // self.batch_size)  # updates
        if length.epochs is not None:
            updates = round(length.epochs * an_epoch)
        else:
            epochs, rest = divmod(length.examples or 0, self.examples)
            updates = epochs * an_epoch + -(-rest // self.batch_size)
        return self.steps_for(min(updates, LONGEST))

    def knows(self, length: Length) -> bool:
        """Whether it can tell how many steps a length is."""
        return self.examples is not None or isinstance(length, int) or length.share is not None


def length_keys(cls: type) -> tuple[str, ...]:
    """The keys of a table that hold a length, or several."""
    return tuple(key for key, (target, _) in fields_of(cls).items() if _holds_lengths(target))


def _holds_lengths(target: Any) -> bool:
    return target is Span or any(_holds_lengths(inside) for inside in typing.get_args(target))


def in_whole_steps(length: Length) -> int:
    """A length that a pace has turned into steps."""
    assert isinstance(length, int), f"{length} is not in steps yet"
    return length
