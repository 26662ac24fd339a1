"""Optimizers as data. Backends map each kind to their own; its fields are named as in torch.optim."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from dtrain.spec.schedules import Constant, Schedule
from dtrain.spec.table import Fraction, OneOf, Rate, Table, adapter, kind, table

AnySchedule = Annotated[Schedule, OneOf(Schedule)]
Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Betas = tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]


@table
class Optimizer(Table):
    """What every optimizer has."""

    lr: Rate
    clip: Above0 | None = None  # global norm of the gradient; not clipped when left out
    schedule: AnySchedule = Constant()

    def lr_at(self, step: int, total: int) -> float:
        """The learning rate at `step`, counted from 0, of `total` steps."""
        return self.lr * self.schedule(step, total)


@kind(Optimizer, "sgd")
class SGD(Optimizer):
    """Stochastic gradient descent, with momentum as torch.optim.SGD has it."""

    momentum: Fraction = 0.0
    nesterov: bool = False
    weight_decay: Rate = 0.0

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")


@kind(Optimizer, "adam")
class Adam(Optimizer):
    """Adam; its weight decay is added to the gradient. Source: Kingma & Ba 2015 (arXiv:1412.6980)."""

    betas: Betas = (0.9, 0.999)
    eps: Above0 = 1e-8
    weight_decay: Rate = 0.0


@kind(Optimizer, "adamw")
class AdamW(Optimizer):
    """Adam with decoupled weight decay. Source: Loshchilov & Hutter 2019 (arXiv:1711.05101)."""

    betas: Betas = (0.9, 0.999)
    eps: Above0 = 1e-8
    weight_decay: Rate = 0.01


@table
class ImportedOptimizer(Optimizer):
    """An optimizer class given by its import path, such as `torch.optim:NAdam`."""

    path: str
    arguments: Mapping[str, Any]  # its keyword arguments, but for `lr`


def decode_imported(path: str, value: Mapping[str, Any]) -> ImportedOptimizer:
    """Keep dtrain's own keys (lr, clip, schedule) apart from the class's arguments."""
    own = {key: item for key, item in value.items() if key in ("lr", "clip", "schedule")}
    common: Optimizer = adapter(Optimizer).validate_python(own)
    rest = {key: item for key, item in value.items() if key not in own}
    return ImportedOptimizer(
        lr=common.lr, clip=common.clip, schedule=common.schedule, path=path, arguments=rest
    )


AnyOptimizer = Annotated[Optimizer, OneOf(Optimizer, decode_imported)]
