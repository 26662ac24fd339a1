"""A sweep as data: which keys are tried with which values, who chooses, and what trials are compared by."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from itertools import islice, product
from math import prod
from typing import Annotated, Any, Literal

from dtrain.spec.axes import Axis, Values
from dtrain.spec.table import (
    Above0,
    Frozen,
    Name,
    Natural,
    OneOf,
    Positive,
    Table,
    Within,
    Wrong,
    empty,
    kind,
    table,
)
from dtrain.spec.words import dotted, nearest, show, written

MOST_CELLS = 10_000  # of a grid


@table
class Pruner(Table):
    """Who ends trials early that come to nothing."""


@kind(Pruner, "median")
class Median(Pruner):
    """Ends a trial whose best value so far is worse than the median of the trials before at that step."""

    startup: Natural = 5  # trials that end by themselves first
    warmup: Natural = 0  # steps before which none is ended


@kind(Pruner, "hyperband")
class Hyperband(Pruner):
    """Lets a part of the trials go on at each of several steps, in brackets that begin later and later.

    Source: Li et al. 2018 (arXiv:1603.06560), as Optuna carries it out.
    """

    min_steps: Positive  # before which none is ended
    factor: Annotated[int, Within(at_least=2)] = 3  # one in so many goes on


AnyAxis = Values | Axis
Choose = Callable[[str, Axis], Any]  # gives a value of a key


@table
class Sweep(Table):
    """Trials of a recipe with other values of some keys, and by what they are compared."""

    name: Name | None = None  # it lies in runs/sweeps/NAME; that of the recipe if left out
    axes: Frozen[AnyAxis] = field(default_factory=empty)  # by dotted key: the values that are tried
    # every combination, by chance, or by what came of the trials before: TPE or CMA-ES
    sampler: Literal["grid", "random", "tpe", "cma_es"] = "tpe"
    trials: Positive | None = None  # how many; to be left out of a grid, which says so itself
    seeds: Positive = 1  # how often each is trained, with `seed` and those after it; the mean counts
    seed: Natural = 0  # of the sampler
    metric: str | None = None  # what trials are compared by; `checkpoint.best` if left out
    mode: Literal["max", "min"] | None = None  # which value is best, where nothing else says it
    value: Literal["last", "best"] = "last"  # which of a run's values counts
    # who ends trials early that come to nothing; nobody if left out
    prune: Annotated[Pruner, OneOf(Pruner, imported=None)] | None = None
    minutes: Above0 | None = None  # of all its lives, after which no trial begins and those running are saved

    def __post_init__(self) -> None:
        if not self.axes and self.seeds == 1:
            raise Wrong("axes", "nothing is to be tried; axes, or more `seeds`, would do")
        for number, (key, axis) in enumerate(self.all_axes.items()):
            self._check_axis(key, axis, list(self.all_axes)[:number])
        if self.seeds > 1 and "seed" in self.axes:
            raise Wrong(dotted(("axes", "seed")), "sets what `seeds` sets; one of them would do", is_key=True)
        if self.sampler == "grid" and self.trials is not None:
            raise Wrong("trials", "a grid has as many as its axes have values; leave it out", is_key=True)
        if self.sampler != "grid" and self.trials is None:
            raise Wrong("trials", "required, but missing; trials = 20 would do")
        if self.sampler == "grid" and len(list(islice(self._products(), MOST_CELLS + 1))) > MOST_CELLS:
            raise Wrong("axes", f"a grid of more than {MOST_CELLS:,} trials; fewer values would do")
        if self.is_grid:
            ever = {key for settings in self.grid() for key in settings}
            if never := [key for key in self.axes if key not in ever]:
                raise Wrong(dotted(("axes", never[0], "when")), "no trial of the grid meets it", is_key=True)

    @property
    def all_axes(self) -> Mapping[str, Axis]:
        """The axes, arrays of values as tables."""
        return {k: a if isinstance(a, Axis) else Axis(values=a) for k, a in self.axes.items()}

    @property
    def is_grid(self) -> bool:
        """Whether its trials are known before the first of them."""
        return self.sampler == "grid"

    def different(self) -> int | None:
        """How many trials can differ; None where they are very many."""
        free = [axis for axis in self.all_axes.values() if axis.tied is None]
        if any(axis.values is None and axis.range is None for axis in free):
            return None
        counts = (axis.count() for axis in free)
        return len(self.grid()) if prod(counts) <= MOST_CELLS else None

    def settings(self, choose: Choose) -> dict[str, Any]:
        """What is set in one trial, by dotted key: of each axis that is on what somebody chooses."""
        found: dict[str, Any] = {}
        for key, axis in self.all_axes.items():
            if not axis.is_on(found):
                continue
            if axis.tied is None:
                found[key] = choose(key, axis)
            elif axis.tied in found:
                found[key] = axis.tied_to(found[axis.tied], self.all_axes[axis.tied].values)
        return found

    def grid(self) -> list[dict[str, Any]]:
        """What is set in each trial of a grid, each once, the last axis moving fastest."""
        found: list[dict[str, Any]] = []
        seen: set[str] = set()
        for chosen in self._products():
            settings = self.settings(_taken_from(chosen))
            if (text := written(settings)) not in seen:
                seen.add(text)
                found.append(settings)
        return found

    def samples(self) -> Iterator[dict[str, Any]]:
        """Trials that have what stands for the values of each axis at least once, the ends of all first."""
        axes = self.all_axes
        first = {key: axis.extremes()[0] for key, axis in axes.items() if axis.tied is None}
        each = {key: axis.extremes() if axis.tied is None else (None,) for key, axis in axes.items()}
        for number in range(max(map(len, each.values()), default=0)):  # of each axis one, then one more
            for key, values in each.items():
                if number < len(values):
                    value = values[number // 2] if number % 2 == 0 else values[-1 - number // 2]
                    yield self.settings(_taken_from({**first, **_met(axes, key), key: value}))
        if not axes:
            yield {}

    def _products(self) -> Iterator[dict[str, Any]]:
        free = {key: axis.cells() or () for key, axis in self.all_axes.items() if axis.tied is None}
        for values in product(*free.values()):
            yield dict(zip(free, values, strict=True))

    def _check_axis(self, key: str, axis: Axis, above: list[str]) -> None:
        place = ("axes", key)
        for name, others in (("tied", () if axis.tied is None else (axis.tied,)), ("when", axis.when)):
            for other in others:
                if other not in above:
                    said = f"found {show(other)}; the key of an axis above would do"
                    at = (*place, name) if name == "tied" else (*place, name, other)
                    raise Wrong(dotted(at), said, suggestion=nearest(other, above), is_key=name == "when")
        for other, wanted in axis.when.items():
            for one in wanted if isinstance(wanted, tuple) else (wanted,):
                if not self.all_axes[other].can_be(one):
                    said = f"found {show(one)}, which {show(other)} never is"
                    raise Wrong(dotted((*place, "when", other)), said)
        if axis.tied is not None:
            self._check_tied(place, axis, self.all_axes[axis.tied])
        elif self.is_grid:
            self._check_counted(place, axis)
        elif self.sampler == "cma_es" and axis.values is not None:
            raise Wrong(dotted(place), "CMA-ES moves numbers between two ends; uniform or range would do")

    def _check_counted(self, place: tuple[str, ...], axis: Axis) -> None:
        try:
            found = axis.cells()
        except ValueError as error:
            raise Wrong(dotted((*place, "range")), str(error)) from None
        if found is None:
            said = "a grid must know how many numbers to take; points = 5 would do"
            raise Wrong(dotted((*place, "points")), said)

    def _check_tied(self, place: tuple[str, ...], axis: Axis, other: Axis) -> None:
        if axis.values is not None and (other.values is None or other.tied is not None):
            raise Wrong(dotted((*place, "values")), f"{show(axis.tied)} has no values of its own to go with")
        if axis.values is not None and len(other.values or ()) != len(axis.values):
            said = f"found {len(axis.values)}, but {show(axis.tied)} has {len(other.values or ())} values"
            raise Wrong(dotted((*place, "values")), said)
        words = [v for v in other.values or () if isinstance(v, bool) or not isinstance(v, int | float)]
        if axis.times is not None and words:
            said = f"{show(axis.tied)} may be {show(words[0])}, which cannot be multiplied"
            raise Wrong(dotted((*place, "times")), said, is_key=True)


def _taken_from(chosen: Mapping[str, Any]) -> Choose:
    return lambda key, _: chosen[key]


def _met(axes: Mapping[str, Axis], key: str) -> dict[str, Any]:
    """Values of the axes above by which one is on."""
    found: dict[str, Any] = {}
    for other, wanted in axes[key].when.items():
        found |= _met(axes, other) | {other: wanted[0] if isinstance(wanted, tuple) else wanted}
    return found
