"""What differs between engines: how one model, with its optimizer, is kept among the ranks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from dtrain.engines.torch_state import NamedOptimizer

Named = list[tuple[str, Tensor]]  # by the name of a parameter


class Held(Protocol):
    """One model, with its optimizer where it is trained: whole on every rank, or in parts.

    A part is what this rank has of a tensor; where models are whole it is the tensor itself. Methods that are
    collective are called by every rank, in the same order.
    """

    module: nn.Module  # what is called where the model is frozen, and in evaluation
    wrapped: nn.Module  # what is called where it is trained
    is_trained: bool  # whether it has an optimizer
    # whether ranks have parts alone of gradients and weights, and norms are summed over them
    is_split: bool
    # whether its first backward goes over the ranks in another order than all that follow, so it is rehearsed
    needs_rehearsal: bool
    mean_over: int  # of how many sums over a rank's micro-batches `reduce` makes means; 1: it adds them up

    def train(self, on: bool) -> None:
        """Let gradients reach the parameters that are trained, or not."""
        ...

    def accumulating(self, number: int, is_last: bool) -> AbstractContextManager[Any]:
        """What surrounds a micro-batch: at the latest with the last, gradients go over the ranks.

        `number` is its own among those of all ranks; IDLE where it counts for nothing.
        """
        ...

    def kept_whole(self) -> AbstractContextManager[Any]:
        """What surrounds a micro-batch, inside `accumulating`, in which a backward is differentiated."""
        ...

    def reduce(self) -> None:
        """After the last backward: from now on gradients are of all ranks, see `mean_over`. Collective."""
        ...

    def gradients(self) -> Named:
        """This rank's parts of the gradients that there are; the engine changes them in place."""
        ...

    def weights(self) -> Named:
        """This rank's parts of all parameters, in the precision in which they are trained."""
        ...

    def refresh(self) -> None:
        """The weights were changed in place: let what the module computes with follow. Collective."""
        ...

    def step(self, settings: Mapping[str, Any]) -> None:
        """One step of the optimizer, as a schedule says. Collective."""
        ...

    def clear(self) -> None:
        """Let go of the gradients."""
        ...

    def size(self, name: str, part: Tensor) -> int:
        """How many bytes the whole of a part of a parameter, or of its state, takes."""
        ...

    def whole(self, name: str, part: Tensor) -> Tensor:
        """The whole of which the ranks have parts of a parameter, or of its state. Collective."""
        ...

    def part(self, name: str, whole: Tensor) -> Tensor:
        """This rank's part of the whole of a parameter."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the whole of a parameter."""
        ...

    def state(self) -> Iterator[tuple[str, str, Any]]:
        """The optimizer's state: a parameter, a key, and this rank's part, or what all ranks have alike."""
        ...

    def restore(self, state: Mapping[str, dict[str, Any]]) -> None:
        """Take up an optimizer's state of whole tensors, by parameter and key.

        Raises CheckpointError where it belongs to other parameters.
        """
        ...

    def close(self) -> None:
        """Let go of the model and its optimizer."""
        ...


Build = Callable[
    [Mapping[str, Tensor]], NamedOptimizer
]  # of the parameters that are trained, or parts of them
# The engine's way to keep a model, given by its name; without a `Build` it is not trained.
Hold = Callable[[str, nn.Module, Build | None], Held]
