"""Which optimizers may step parts of weights."""

import torch

from dtrain.backends.torch_lion import Lion
from dtrain.backends.torch_together import Together
from dtrain.errors import LaunchError

# Those that move each number of a weight by that number alone, and so do the same with a part of a weight.
ELEMENTWISE: tuple[type[torch.optim.Optimizer], ...] = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.ASGD,
    torch.optim.Rprop,
    Lion,
)


def check_elementwise(model: str, optimizer: torch.optim.Optimizer, engine: str) -> None:
    """Raise LaunchError where an optimizer may go by the shapes of weights, which an engine cuts."""
    kind = type(optimizer)
    name = "Muon" if kind is Together else kind.__name__
    if kind not in ELEMENTWISE:
        raise LaunchError(
            f"{engine} cannot train {model}: its optimizer, {name}, may go by the shapes of "
            f"weights, and {engine} cuts them; adamw would do, or DDP"
        )
