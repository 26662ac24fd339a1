"""What every rank does, or none: an error on one of them is an error on all."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from dtrain.engines.base import Engine
from dtrain.errors import CheckpointError, DataError, DtrainError, LaunchError, RecipeError

LOOK = 10.0  # seconds between two looks whether all are done: less than anybody is waited for
T = TypeVar("T")
OF_OTHER_RANKS = {kind.__name__: kind for kind in (CheckpointError, DataError, LaunchError)}


def agreed(engine: Engine, action: Callable[[], T]) -> T:
    """Do something on every rank; if it fails on any, raise on all: its own error, or the first rank's."""
    result: list[T] = []
    problem = None
    try:
        result.append(action())
    except Exception as error:  # whatever it is, the other ranks wait to hear of it
        problem = error
    said = engine.gather(None if problem is None else [type(problem).__name__, str(problem)])
    if problem is not None:
        raise problem
    for rank, (kind, text) in ((rank, each) for rank, each in enumerate(said) if each is not None):
        text = f"rank {rank}: {text}"
        raise RecipeError("", text) if kind == "RecipeError" else OF_OTHER_RANKS.get(kind, DtrainError)(text)
    return result[0]


def agreed_at_last(engine: Engine, action: Callable[[], T], going_on: Callable[[], None]) -> T:
    """The same of what may take one rank an hour, as moving files does: the others are told that it goes on.

    `going_on` is called on all of them, again and again.
    """
    if engine.world == 1:
        return agreed(engine, action)
    with ThreadPoolExecutor(1) as thread:
        doing = thread.submit(action)
        wait_for_all(engine, lambda seconds: not wait([doing], seconds).not_done, going_on)
        return agreed(engine, doing.result)


def wait_for_all(engine: Engine, is_done: Callable[[float], bool], going_on: Callable[[], None]) -> None:
    """Wait until all ranks are done; `is_done` waits for at most so many seconds. Collective."""
    while not all(engine.gather(is_done(LOOK))):
        going_on()
