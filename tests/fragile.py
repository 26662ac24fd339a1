"""A system whose loss, or its gradient, is not finite at examples that the data calls poisoned."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dtrain import Loss, Ops, Phase, System
from dtrain.systems.base import Batch, Models


@dataclass(frozen=True, kw_only=True)
class Fragile(System):
    """Two phases train the one model; the second makes two updates, and meets the trap."""

    trap: Literal[
        "loss", "gradient", "aside"
    ]  # what is not finite; "aside": a term that is no part of a loss
    begins_well: bool = True  # whether there is a first phase, of which all is finite

    def phases(self) -> Sequence[Phase]:
        trapped = Phase(("left",), self.trapped, repeat=2)
        return (Phase(("left",), self.plain), trapped) if self.begins_well else (trapped,)

    def plain(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        return Loss(models.left(batch["x"]).square().mean())

    def trapped(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        squares, good = models.left(batch["x"]).square().sum(1), 1 - batch["poison"]  # (N,)
        size = squares.mean()
        match self.trap:
            case "loss":
                spoilt = (0 * good / good).mean()  # 0 / 0
                return Loss(size + spoilt, {"size": size, "spoilt": spoilt})
            case "gradient":  # that of a root is infinite at 0
                return Loss(size + (squares * good).sqrt().mean(), {"size": size})
            case "aside":
                return Loss(size, {"ratio": (1 / good).mean()})
