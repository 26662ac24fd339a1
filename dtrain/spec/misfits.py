"""Which lengths of a schedule do not fit a run: too long, out of order, leaving nothing for the last part."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, Literal

from dtrain.spec.lengths import Length, Pace, length_keys
from dtrain.spec.schedules import Exponential, RateSchedule, Sequence, Step, WarmupStableDecay, paces
from dtrain.spec.table import Wrong

Whole = Literal["run", "part"]  # what a schedule takes for the whole
NONE_NEEDED = ("warmup", "rise", "decay")  # lengths of which there may be none


def misfits(schedule: RateSchedule, pace: Pace, whole: Whole = "run") -> Iterator[Wrong]:
    """Every length that does not fit a run of this pace, at its key.

    Those that go by the data are passed over where the pace does not know how many examples there are.
    """
    if isinstance(schedule, Sequence):
        yield from _of_parts(schedule, pace, whole)
    known = {key: length for key, length in lengths_of(schedule) if pace.knows(length)}
    for key, length in known.items():
        if pace.steps(length) > pace.total:
            said = f"but the whole {whole} has {pace.total} steps; at most that would do"
            yield Wrong(key, f"{_found(length, pace)}, {said}")
        elif not pace.steps(length) and key not in NONE_NEEDED:
            yield Wrong(key, f"{_found(length, pace)}, which is no step; a longer one would do")
    if isinstance(schedule, Step):
        yield from _not_rising({key: known[key] for key in known if key.startswith("milestones")}, pace)
    if isinstance(schedule, WarmupStableDecay) and {"warmup", "decay"} <= known.keys():
        left = pace.total - pace.steps(schedule.warmup)
        if 0 <= left < pace.steps(schedule.decay) <= pace.total:
            said = f"but the warm-up leaves {left} of the {whole}'s {pace.total} steps; at most that would do"
            yield Wrong("decay", f"{_found(schedule.decay, pace)}, {said}")


def lengths_of(schedule: RateSchedule) -> Iterator[tuple[str, Length]]:
    """The lengths that may not be longer than the run, by their keys; not those of a sequence's parts."""
    for key in length_keys(type(schedule)):
        value = getattr(schedule, key)
        if isinstance(value, tuple):
            yield from ((f"{key}[{number}]", length) for number, length in enumerate(value))
        elif value is not None and not (isinstance(schedule, Exponential) and key == "every"):
            yield key, value


def every_length(schedule: Any) -> Iterator[Length]:
    """Every length of a schedule and of the parts in it."""
    if isinstance(schedule, Sequence):
        for part in schedule.parts:
            yield from () if part.length is None else (part.length,)
            yield from every_length(part.schedule)
    elif isinstance(schedule, RateSchedule):
        for key in length_keys(type(schedule)):
            value = getattr(schedule, key)
            yield from value if isinstance(value, tuple) else () if value is None else (value,)


def _not_rising(milestones: Mapping[str, Length], pace: Pace) -> Iterator[Wrong]:
    """Milestones that are not after the one before them."""
    for (_, before), (key, after) in pairwise(milestones.items()):
        if pace.steps(before) >= pace.steps(after):
            said = f"but the one before it is at {pace.steps(before)}; milestones rise"
            yield Wrong(key, f"{_found(after, pace)}, {said}")


def _of_parts(sequence: Sequence, pace: Pace, whole: Whole) -> Iterator[Wrong]:
    """Parts that leave nothing for those after them, and what does not fit its part."""
    if not all(part.length is None or pace.knows(part.length) for part in sequence.parts):
        return
    used = 0
    for number, (part, own) in enumerate(paces(sequence, pace)):
        key = f"parts[{number}]"
        used += own.total
        if part.length is not None and not own.total:
            yield Wrong(
                f"{key}.length", f"{_found(part.length, pace)}, which is no step; a longer one would do"
            )
        elif part.length is not None and used >= pace.total:
            said = f"which leaves nothing of the {whole}'s {pace.total} steps for the last part"
            yield Wrong(f"{key}.length", f"{_found(part.length, pace)}, {said}; a shorter one would do")
            return
        for wrong in misfits(part.schedule, own, "part"):
            yield Wrong(f"{key}.schedule.{wrong.at}", str(wrong))


def _found(length: Length, pace: Pace) -> str:
    """A length as it was written, and in steps."""
    if isinstance(length, int):
        return f"found {length}"
    ((key, value),) = ((key, value) for key, value in vars(length).items() if value is not None)
    written = f"{value:g}" if isinstance(value, float) else value
    return f"found {{ {key} = {written} }}, {pace.steps(length)} steps"
