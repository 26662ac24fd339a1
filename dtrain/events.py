"""What the loop tells its observers: typed events, in the order in which things happen.

Observers read them and cannot change training. Every rank's loop yields the same events;
only rank 0 has observers.
"""

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Asked = signal.Signals | Literal["time is up"]  # what may ask a run to end


@dataclass(frozen=True)
class Started:
    """The loop is about to run. `step` steps are done already (0, or where a checkpoint left off)."""

    step: int
    total: int
    batch_size: int


@dataclass(frozen=True)
class Stepped:
    """Step `step` (counted from 1) is done; `metrics` is empty except every `every.log` steps.

    Names are `model/term`: `discriminator/loss`, `discriminator/grad_norm`, `discriminator/lr`;
    `skipped`, the updates of the whole run that were, where `train.on_nonfinite = "skip"`;
    and `examples_per_second`, the one value that differs from run to run.
    """

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Evaluated:
    """Means over every evaluation example once, named `evaluate/accuracy` and so on."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Sampled:
    """What was drawn, by name: grids of pictures that were written as PNG files, and files of texts."""

    step: int
    pictures: Mapping[str, Path] = field(default_factory=dict)
    texts: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint of `step` lies at `path`.

    It is told then or at a later step, as writing takes its time: on each rank perhaps at another.
    """

    step: int
    path: Path


@dataclass(frozen=True)
class Finished:
    """The last step is done and saved; or an earlier one, of a run that does not become better any more.

    `skipped` updates moved nothing, as `train.on_nonfinite` asked.
    """

    step: int
    skipped: int = 0
    early: str = ""  # why it ended before its last step


@dataclass(frozen=True)
class Stopped:
    """The run was asked to end before its last step: it is saved at `path`, and can be carried on."""

    step: int
    path: Path
    asked: Asked

    @property
    def why(self) -> str:
        """What asked, as the user knows it."""
        return self.asked.name if isinstance(self.asked, signal.Signals) else "--max-minutes"


Event = Started | Stepped | Evaluated | Sampled | Saved | Finished | Stopped
Observer = Callable[[Event], None]
