"""What every rank does, or none: an error on one of them is an error on all."""

from collections.abc import Callable
from typing import TypeVar

from dtrain.engines.base import Engine
from dtrain.errors import CheckpointError, DataError, DtrainError, LaunchError, RecipeError

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
