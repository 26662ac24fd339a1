"""The factor that keeps gradients of fp16 from vanishing, by phase."""

from dataclasses import dataclass
from typing import Any

GROWTH, BACKOFF, PERIOD = 2.0, 0.5, 2000
LEAST = 2.0**-14


@dataclass
class LossScale:
    """Halved by an update whose gradients overflow, doubled after so many in a row that do not.

    Source: Micikevicius et al. 2018 (arXiv:1710.03740); the numbers are those of torch.amp.GradScaler, which
    looks at whole gradients alone, and of one optimizer at a time.
    """

    scale: float = 2.0**16
    good: int = 0  # updates since the scale changed

    def updated(self, *, is_finite: bool) -> None:
        """Go by whether the gradients of an update were finite, on all ranks."""
        if not is_finite:
            self.scale, self.good = self.scale * BACKOFF, 0
        elif self.good + 1 == PERIOD:
            self.scale, self.good = self.scale * GROWTH, 0
        else:
            self.good += 1

    @property
    def is_hopeless(self) -> bool:
        """Whether gradients are not finite by themselves: even so small a factor did not help."""
        return self.scale < LEAST

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"scale": self.scale, "good": self.good}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state, or that of torch's own, which older checkpoints hold."""
        good = state["good"] if "good" in state else state["_growth_tracker"]
        self.scale, self.good = float(state["scale"]), int(good)
