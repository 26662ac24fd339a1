"""What state.json holds, checked before anything of it is believed."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dtrain.errors import CheckpointError

MOST_STEPS = 10**15 - 1  # with more, a folder's name would be none of ours
ENDLESS = ("inf", "-inf", "nan")  # values of metrics for which JSON has no word


def is_step(value: Any) -> bool:
    """Whether something may be a number of steps."""
    return type(value) is int and 0 <= value <= MOST_STEPS


def check_state(path: Path, state: Mapping[str, Any], step: int) -> None:
    """Raise CheckpointError unless a state is of this step, and all that is known of it is as we write it."""
    for key, is_number in (("step", is_step), ("total", _is_count)):
        if not is_number(state.get(key)):
            raise CheckpointError(f"{path} does not say {key}, a number of steps")
    if state["step"] != step:
        raise CheckpointError(f"{path} is of step {state['step']}, and the manifest of step {step}")
    for key, is_good in KNOWN.items():
        try:
            is_wrong = key in state and not is_good(state[key])
        except RecursionError:  # lists in lists in lists
            is_wrong = True
        if is_wrong:
            raise CheckpointError(f"{path}: what it says of {key} cannot be")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_scored(value: Any) -> bool:
    """A step with the value of a metric then."""
    return isinstance(value, list) and len(value) == 2 and is_step(value[0]) and _is_number(value[1])


def _is_best(value: Any) -> bool:
    match value:
        case None:
            return True
        case {"metric": str(), "mode": "min" | "max", "at": at, **more}:
            top, stale = more.get("top", []), more.get("stale", False)
            return (
                (at is None or _is_scored(at))
                and isinstance(top, list)
                and all(map(_is_scored, top))
                and _is_count(more.get("waited", 0))
                and isinstance(stale, bool)
            )
    return False


def _is_schedule(value: Any) -> bool:
    match value:
        case {"metric": str(), "values": list(values)}:
            return all(_is_number(each) or each in ENDLESS for each in values)
    return False


def _is_scale(value: Any) -> bool:
    match value:
        case {"scale": scale, "good": good} | {"scale": scale, "_growth_tracker": good}:
            return _is_number(scale) and scale > 0 and _is_count(good)
    return False


def _is_plain(value: Any) -> bool:
    """What the state of an optimizer may have besides tensors: a number, a string, or a list of such."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _is_optimizers(value: Any) -> bool:
    match value:
        case {"numbers": dict(numbers)}:
            return all(map(_is_plain, numbers.values()))
    return False


def _table_of(is_good: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(is_good, value.values()))


KNOWN: Mapping[str, Callable[[Any], bool]] = {
    "data": lambda value: isinstance(value, dict),
    "best": _is_best,
    "schedules": _table_of(_is_schedule),
    "skipped": lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_count, value)),
    "optimizers": _is_optimizers,
    "loss_scales": _table_of(_is_scale),
    "averages": _table_of(_is_count),
}
