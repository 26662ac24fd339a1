"""Optimizers as data. Backends map each kind to their own; its fields are named as in torch.optim."""

import dataclasses
import typing
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal

from dtrain.spec.rates import AnySchedule
from dtrain.spec.schedules import Constant
from dtrain.spec.table import (
    Above0,
    AtLeastOne,
    BelowOne,
    ByOwner,
    Fraction,
    OneOf,
    Open,
    Positive,
    Rate,
    Table,
    Within,
    Wrong,
    kind,
    table,
)

Betas = tuple[BelowOne, BelowOne]
Patterns = str | Annotated[tuple[str, ...], AtLeastOne()]


@table
class Group(Table):
    """Parameters with settings of their own; what is left out is as in the optimizer."""

    match: Patterns  # names of parameters, such as "3.weight", "*.bias" or ["0.*", "1.*"]
    lr: Rate | None = None  # learning rate, to which the schedule's factor applies too


@table
class ImportedGroup(Open):
    """The same of an imported optimizer; other keys are settings of it."""

    match: Patterns  # names of parameters, such as "3.weight", "*.bias" or ["0.*", "1.*"]
    lr: Rate | None = None  # learning rate, to which the schedule's factor applies too


@cache
def groups_of(cls: type) -> Any:
    """The type of `groups` in an optimizer: in a group may stand any setting of that kind."""
    if cls is Optimizer:
        return tuple[Group, ...]
    if issubclass(cls, ImportedOptimizer):
        return tuple[ImportedGroup, ...]
    sources: tuple[Any, ...] = (cls, Others) if issubclass(cls, Muon) else (cls,)
    settings: dict[str, Any] = {}
    for source in sources:
        settings |= typing.get_type_hints(source, include_extras=True)
    known = {field.name for source in sources for field in dataclasses.fields(source)}
    left_out = {*COMMON, "match", "others"}
    fields = [
        (key, settings[key] | None, dataclasses.field(default=None))
        for key in settings
        if key in known - left_out
    ]
    made = dataclasses.make_dataclass(
        f"{cls.__name__}Group", fields, bases=(Group,), frozen=True, kw_only=True
    )
    made.__doc__ = Group.__doc__
    made.made_of = sources  # type: ignore[attr-defined]  # a class that is made here
    return tuple[made, ...]  # type: ignore[valid-type]


@table
class Optimizer(Table):
    """What every optimizer has."""

    lr: Rate  # learning rate, before the schedule's factor
    clip: Above0 | None = None  # global norm of the model's gradient; not clipped when left out
    clip_value: Above0 | None = None  # largest size of any number of the gradient; cut off before `clip`
    schedule: AnySchedule = Constant()  # factor of the learning rate over the steps
    # parameters with settings of their own; each belongs to the first group that matches it
    groups: Annotated[tuple[Any, ...], ByOwner(groups_of)] = ()

    def __post_init__(self) -> None:
        for number, group in enumerate(self.groups):
            if group.lr is not None and not self.lr:
                said = (
                    "the schedule's factor is told from the optimizer's lr, which is 0; one above 0 would do"
                )
                raise Wrong(f"groups[{number}].lr", said)
            try:
                self.of(group)
            except Wrong as error:
                where = f".{error.at}" if error.at in given(group) else ""
                raise Wrong(f"groups[{number}]{where}", str(error)) from None

    def of(self, group: Group | ImportedGroup) -> "Optimizer":
        """The optimizer of the parameters of a group."""
        return dataclasses.replace(self, groups=(), **given(group))


COMMON = tuple(field.name for field in dataclasses.fields(Optimizer))  # keys that every optimizer has


def given(group: Group | ImportedGroup) -> Mapping[str, Any]:
    """The settings that a group says itself."""
    said = {field.name: getattr(group, field.name) for field in dataclasses.fields(group)}
    said.pop("match")
    said |= said.pop("arguments", {})
    return {key: value for key, value in said.items() if value is not None}


@kind(Optimizer, "sgd")
class SGD(Optimizer):
    """Stochastic gradient descent, with momentum as torch.optim.SGD has it."""

    momentum: Fraction = 0.0  # share of the last step that is taken again
    nesterov: bool = False  # look ahead along the momentum
    weight_decay: Rate = 0.0  # factor of the weights, added to the gradient

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise Wrong("nesterov", "needs a momentum above 0")
        super().__post_init__()


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


@table
class Others(Table):
    """How parameters that Muon does not train are trained: by AdamW."""

    lr: Rate  # learning rate, to which the schedule's factor applies too
    betas: Betas = (0.9, 0.999)  # decay of the means of gradients and of their squares
    eps: Above0 = 1e-8  # added to the denominator
    weight_decay: Rate = 0.01  # share of the weights that lr takes off at each update
    match: Patterns | None = None  # further ones, such as the last layer's "9.weight"; names as in `groups`


@kind(Optimizer, "muon")
class Muon(Optimizer):
    """Momentum whose step is made orthogonal, for matrices; all other parameters are trained by AdamW.

    Others are biases, norms, kernels of convolutions, embeddings, and what `others.match` names. A group says
    of its parameters what is a setting of that which trains them; `lr` and `weight_decay` are of both.
    Source: Jordan et al. 2024 (kellerjordan.github.io/posts/muon), Liu et al. 2025 (arXiv:2502.16982).
    """

    others: Others  # AdamW's settings
    momentum: BelowOne = 0.95  # share of the sum of gradients that is kept
    nesterov: bool = True  # look ahead along the momentum
    ns_steps: Positive = 5  # of the iteration of Newton and Schulz that makes a step orthogonal
    # which sizes of steps: as of Jordan, or such that lr and weight_decay may be AdamW's, as of Liu
    adjust_lr_fn: Literal["original", "match_rms_adamw"] = "original"
    weight_decay: Rate = 0.1  # share of the weights that lr takes off at each update

    def __post_init__(self) -> None:
        if not self.lr:
            raise Wrong("lr", "the schedule's factor of others.lr is told from it; a number above 0 would do")
        super().__post_init__()

    def of(self, group: Group | ImportedGroup) -> "Muon":
        """The optimizer of the parameters of a group: the settings stand in both halves."""
        said = given(group)
        halves = [{key: said[key] for key in said if key in fields} for fields in (MUON, ADAMW)]
        others = dataclasses.replace(self.others, **halves[1])
        return dataclasses.replace(self, groups=(), others=others, **halves[0])

    @property
    def adamw(self) -> AdamW:
        """What trains the parameters that Muon does not."""
        return AdamW(**{key: getattr(self.others, key) for key in ADAMW})


# Those that move each number of a weight by that number alone, and so do the same with a part of a weight.
ELEMENTWISE = (SGD, Adam, AdamW, RMSprop, Lion)
FUSIBLE = (SGD, Adam, AdamW)
WITH_FOREACH = (*FUSIBLE, RMSprop, Adafactor)
Form = Literal["auto", "fused", "foreach", "plain"]
FORMS: Mapping[Form, tuple[type[Optimizer], ...]] = {  # how an optimizer may step, and which can
    "auto": (Optimizer,),
    "fused": FUSIBLE,
    "foreach": WITH_FOREACH,
    "plain": (SGD, Adam, AdamW, RMSprop, Adafactor, Lion, Muon),
}
MUON = ("lr", "momentum", "nesterov", "ns_steps", "adjust_lr_fn", "weight_decay")
ADAMW = ("lr", "betas", "eps", "weight_decay")


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
        super().__post_init__()

    def of(self, group: Group | ImportedGroup) -> "ImportedOptimizer":
        """The optimizer of the parameters of a group, whose settings are arguments."""
        said = dict(given(group))
        lr = said.pop("lr", self.lr)
        return dataclasses.replace(self, groups=(), lr=lr, arguments={**self.arguments, **said})


AnyOptimizer = Annotated[Optimizer, OneOf(Optimizer, ImportedOptimizer, refused=REFUSED)]
