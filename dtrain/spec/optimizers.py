"""Optimizers as data. Backends map each kind to their own; its fields are named as in torch.optim."""

from collections.abc import Mapping
from typing import Annotated, Any

from dtrain.spec.schedules import AnySchedule, Constant
from dtrain.spec.table import Above0, BelowOne, Fraction, OneOf, Rate, Table, Wrong, kind, table

Betas = tuple[BelowOne, BelowOne]


@table
class Optimizer(Table):
    """What every optimizer has."""

    lr: Rate  # learning rate, before the schedule's factor
    clip: Above0 | None = None  # global norm of the gradient; not clipped when left out
    schedule: AnySchedule = Constant()  # factor of the learning rate over the steps


@kind(Optimizer, "sgd")
class SGD(Optimizer):
    """Stochastic gradient descent, with momentum as torch.optim.SGD has it."""

    momentum: Fraction = 0.0  # share of the last step that is taken again
    nesterov: bool = False  # look ahead along the momentum
    weight_decay: Rate = 0.0  # factor of the weights, added to the gradient

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise Wrong("nesterov", "needs a momentum above 0")


@kind(Optimizer, "adam")
class Adam(Optimizer):
    """Adam; its weight decay is added to the gradient. Source: Kingma & Ba 2015 (arXiv:1412.6980)."""

    betas: Betas = (0.9, 0.999)  # decay of the means of gradients and of their squares
    eps: Above0 = 1e-8  # added to the denominator
    weight_decay: Rate = 0.0  # factor of the weights, added to the gradient


@kind(Optimizer, "adamw")
class AdamW(Optimizer):
    """Adam with decoupled weight decay. Source: Loshchilov & Hutter 2019 (arXiv:1711.05101)."""

    betas: Betas = (0.9, 0.999)  # decay of the means of gradients and of their squares
    eps: Above0 = 1e-8  # added to the denominator
    weight_decay: Rate = 0.01  # share of the weights that lr takes off at each update


# Of torch's own, those that dtrain cannot step, and why.
UNFIT = {
    "LBFGS": "evaluates the loss again inside a step, and dtrain evaluates it once",
    "SparseAdam": "takes sparse gradients alone, and those of dtrain are dense",
}


@table
class ImportedOptimizer(Optimizer):
    """An optimizer class given by its import path, such as `torch.optim:NAdam`."""

    path: str
    arguments: Mapping[str, Any]  # its keyword arguments, but for `lr`

    def __post_init__(self) -> None:
        module, _, name = self.path.partition(":")
        if name in UNFIT and f"{module}.".startswith("torch.optim."):
            raise Wrong("kind", f"{self.path} {UNFIT[name]}; adam would do")


AnyOptimizer = Annotated[Optimizer, OneOf(Optimizer, ImportedOptimizer)]
