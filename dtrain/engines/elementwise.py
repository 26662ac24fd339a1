"""Which optimizers may step parts of weights."""

import torch

from dtrain.backends.torch_optimizers import CLASSES
from dtrain.errors import LaunchError
from dtrain.spec import optimizers

# The built-in ones, and those of torch that a recipe may import.
ELEMENTWISE: tuple[object, ...] = (
    *(CLASSES[kind] for kind in optimizers.ELEMENTWISE),
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.ASGD,
    torch.optim.Rprop,
)


def check_elementwise(model: str, optimizer: torch.optim.Optimizer, engine: str) -> None:
    """Raise LaunchError where an optimizer may go by the shapes of weights, which an engine cuts.

    A built-in one is refused before torch is imported, by `dtrain.scale.fit`.
    """
    kind = type(optimizer)
    if kind not in ELEMENTWISE:
        raise LaunchError(
            f"{engine} cannot train {model}: its optimizer, {kind.__name__}, may go by the shapes of "
            f"weights, and {engine} cuts them; adamw would do, or DDP"
        )
