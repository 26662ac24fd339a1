"""Trackers: what observes a run and keeps or shows what happened. One file a kind, imported when used."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from difflib import get_close_matches

from dtrain.errors import RecipeError
from dtrain.events import Event, Observer
from dtrain.track.base import OpenTracker, RunInfo

__all__ = ["TRACKERS", "RunInfo", "open_trackers"]


def _open_console(run: RunInfo, step: int) -> AbstractContextManager[Observer]:
    from dtrain.track.console import open_console

    return open_console(run, step)


def _open_jsonl(run: RunInfo, step: int) -> AbstractContextManager[Observer]:
    from dtrain.track.jsonl import open_jsonl

    return open_jsonl(run, step)


def _open_wandb(run: RunInfo, step: int) -> AbstractContextManager[Observer]:
    from dtrain.track.weights_and_biases import open_wandb

    return open_wandb(run, step)


TRACKERS: dict[str, OpenTracker] = {"console": _open_console, "jsonl": _open_jsonl, "wandb": _open_wandb}


@contextmanager
def open_trackers(kinds: Sequence[str], run: RunInfo, step: int) -> Iterator[Observer]:
    """Open every kind and yield one observer that tells each of them, in the order of `kinds`.

    Any order will do: on a resume at `step` the W&B tracker reads only those lines of
    `metrics.jsonl` that the jsonl tracker keeps.
    """
    with ExitStack() as stack:
        observers = [stack.enter_context(_find(kind)(run, step)) for kind in kinds]

        def observe(event: Event) -> None:
            for observer in observers:
                observer(event)

        yield observe


def _find(kind: str) -> OpenTracker:
    if kind not in TRACKERS:
        near = get_close_matches(kind, TRACKERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise RecipeError("track.kinds", f"{kind!r} is not one of {', '.join(sorted(TRACKERS))}{hint}")
    return TRACKERS[kind]
