"""What a tracker is: a resource that, while open, observes the events of a run."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dtrain.events import Observer


@dataclass(frozen=True)
class RunInfo:
    """What trackers need to know of a run."""

    folder: Path  # runs/<name>/<run id>
    id: str
    name: str  # the recipe's name
    project: str
    config: Mapping[str, Any]  # the resolved recipe, as plain tables
    where: str  # on how many processes, and under which engine


class OpenTracker(Protocol):
    def __call__(self, run: RunInfo, step: int) -> AbstractContextManager[Observer]:
        """Observe a run from `step` on; what an earlier life of it tracked after `step` counts
        once: it is dropped or it is kept and not written again."""
        ...
