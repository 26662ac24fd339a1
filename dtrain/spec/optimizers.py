"""Optimizers as data. Backends map each kind to their own; its fields are named as in torch.optim."""

from collections.abc import Mapping
from typing import Annotated, Any

from dtrain.spec.rates import AnySchedule
from dtrain.spec.schedules import Constant
from dtrain.spec.table import (
    Above0,
    BelowOne,
    Fraction,
    OneOf,
    Rate,
    Table,
    Within,
    Wrong,
    kind,
    table,
)

Betas = tuple[BelowOne, BelowOne]


@table
class Optimizer(Table):
    """What every optimizer has."""

    lr: Rate  # learning rate, before the schedule's factor
    clip: Above0 | None = None  # global norm of the model's gradient; not clipped when left out
    clip_value: Above0 | None = None  # largest size of any number of the gradient; cut off before `clip`
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


@kind(Optimizer, "rmsprop")
class RMSprop(Optimizer):
    """Steps divided by the root of a mean of squared gradients.

    Source: Tieleman & Hinton 2012 (lecture 6.5 of Neural Networks for Machine Learning).
    """

    alpha: BelowOne = 0.99  # decay of the mean of the squares
    eps: Above0 = 1e-8  # added to the denominator
    momentum: Fraction = 0.0  # share of the last step that is taken again
    centered: bool = False  # divide by an estimate of the deviation instead
    weight_decay: Rate = 0.0  # factor of the weights, added to the gradient


@kind(Optimizer, "adafactor")
class Adafactor(Optimizer):
    """Adam without the first mean, that keeps of the squares of a matrix the sums of rows and columns alone.

    A step is measured by the size of the weights: `lr` is its share of them, and never more than one over the
    root of the number of steps. Source: Shazeer & Stern 2018 (arXiv:1804.04235).
    """

    beta2_decay: Annotated[float, Within(at_most=0)] = -0.8  # the mean of squares decays by 1 - step ** this
    eps1: Above0 | None = None  # floor of squared gradients; the spacing of the arithmetic when left out
    eps2: Above0 = 1e-3  # least size of the weights that a step is measured by
    d: Annotated[float, Within(at_least=1)] = 1.0  # largest root of the mean square of a step, before lr
    weight_decay: Rate = 0.0  # share of the weights that lr takes off at each update


@kind(Optimizer, "lion")
class Lion(Optimizer):
    """Steps of one size in every number, by the sign of a mean of gradients.

    Its `lr` is 3 to 10 times smaller than AdamW's, its `weight_decay` as much larger.
    Source: Chen et al. 2023 (arXiv:2302.06675).
    """

    betas: Betas = (0.9, 0.99)  # decay of the mean in the step, and of the mean that is kept
    weight_decay: Rate = 0.0  # share of the weights that lr takes off at each update


# Those that dtrain cannot step, and why; under their names in torch.optim.
UNFIT = {
    "LBFGS": "evaluates the loss again inside a step, and dtrain evaluates it once",
    "SparseAdam": "takes sparse gradients alone, and those of dtrain are dense",
}
REFUSED = {  # as kinds, for the same reasons
    "lbfgs": UNFIT["LBFGS"],
    "l_bfgs": UNFIT["LBFGS"],
    "l-bfgs": UNFIT["LBFGS"],
    "sparse_adam": UNFIT["SparseAdam"],
    "sparseadam": UNFIT["SparseAdam"],
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


AnyOptimizer = Annotated[Optimizer, OneOf(Optimizer, ImportedOptimizer, refused=REFUSED)]
