"""What a layer is, without saying how any backend computes it.

Shapes leave out the batch axis: pictures are (channels, height, width), sequences (length, features).
A layer that does not fit the shape before it raises ValueError saying what it needs.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from dtrain.spec.initial import Constant, Initial, Shape, Uniform
from dtrain.spec.table import (
    Above0,
    BelowOne,
    Finite,
    Fraction,
    OneOf,
    Positive,
    Sides,
    Table,
    Wrong,
    kind,
    table,
)

InitialWeight = Annotated[Initial, OneOf(Initial, imported=None)] | None
Function = Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid", "softplus"]


@dataclass(frozen=True)
class Parameter:
    """One trainable array of a layer, in PyTorch's layout, and how its first values are drawn."""

    shape: Shape
    initial: Initial


class Layer(Table):
    """One step of a model. A backend has a builder for each kind."""

    @abstractmethod
    def out_shape(self, shape: Shape) -> Shape:
        """The shape that comes out when `shape` goes in. Raises ValueError if it does not fit."""

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        """The trainable arrays by name, for an input of `shape`."""
        return {}

    def buffers(self, shape: Shape) -> dict[str, Shape]:
        """The arrays that are kept but not trained, by name."""
        return {}


def like_pytorch(weight: Shape, fan_in: int, initial: Initial | None, bias: int) -> dict[str, Parameter]:
    """Weight and bias as torch.nn.Linear and torch.nn.Conv2d first draw them: U(±1/sqrt(fan_in))."""
    usual = Uniform(bound=1 / math.sqrt(fan_in))
    drawn = {"weight": Parameter(weight, initial or usual)}
    return drawn | ({"bias": Parameter((bias,), usual)} if bias else {})


def title(layer: Layer) -> str:
    """What errors and plans call a layer: its kind, or its import path."""
    return layer.path if isinstance(layer, ImportedLayer) else layer.kind


@kind(Layer, "linear")
class Linear(Layer):
    """A weighted sum of the features of a vector, or of each element of a sequence."""

    out: Positive  # features that come out
    bias: bool = True  # whether a learned offset is added
    initial: InitialWeight = None  # of the weight; PyTorch's own when left out

    def out_shape(self, shape: Shape) -> Shape:
        if len(shape) not in (1, 2):
            raise ValueError(
                f"linear needs (features) or (length, features), not {shape}; put a flatten before it"
            )
        return (*shape[:-1], self.out)

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        return like_pytorch((self.out, shape[-1]), shape[-1], self.initial, self.out if self.bias else 0)


@kind(Layer, "reshape")
class Reshape(Layer):
    """The same values in another shape."""

    shape: Sides  # without the batch axis; as many values as come in

    def out_shape(self, shape: Shape) -> Shape:
        if math.prod(shape) != math.prod(self.shape):
            wanted, found = math.prod(self.shape), math.prod(shape)
            raise Wrong("shape", f"{self.shape} takes {wanted} values, not {found}")
        return self.shape


@kind(Layer, "flatten")
class Flatten(Layer):
    """All values in one axis."""

    def out_shape(self, shape: Shape) -> Shape:
        return (math.prod(shape),)


def gain_and_offset(width: int) -> dict[str, Parameter]:
    """What a normalisation learns: first 1 and 0."""
    return {
        "weight": Parameter((width,), Constant(value=1.0)),
        "bias": Parameter((width,), Constant(value=0.0)),
    }


@kind(Layer, "group_norm")
class GroupNorm(Layer):
    """Normalises groups of channels. Source: Wu & He 2018 (arXiv:1803.08494)."""

    groups: Positive  # the channels must divide into them
    eps: Above0 = 1e-5  # added to the variance

    def out_shape(self, shape: Shape) -> Shape:
        if shape[0] % self.groups:
            raise ValueError(f"{shape[0]} channels do not divide into {self.groups} groups")
        return shape

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        return gain_and_offset(shape[0])


@kind(Layer, "layer_norm")
class LayerNorm(Layer):
    """Normalises the features of a vector, or of each element of a sequence.

    Source: Ba, Kiros & Hinton 2016 (arXiv:1607.06450).
    """

    eps: Above0 = 1e-5  # added to the variance

    def out_shape(self, shape: Shape) -> Shape:
        if len(shape) > 2:
            raise ValueError(f"layer_norm needs (features) or (length, features), not {shape}; "
                             "for pictures use group_norm with groups = 1")  # fmt: skip
        return shape

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        return gain_and_offset(shape[-1])


@kind(Layer, "batch_norm")
class BatchNorm(Layer):
    """Normalises each channel over a micro-batch. Source: Ioffe & Szegedy 2015 (arXiv:1502.03167).

    The running statistics take in every micro-batch of every process, in the micro-batches' order.
    """

    momentum: Fraction = 0.1  # share of the newest micro-batch in the running statistics
    eps: Above0 = 1e-5  # added to the variance

    def out_shape(self, shape: Shape) -> Shape:
        return shape

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        return gain_and_offset(shape[0])

    def buffers(self, shape: Shape) -> dict[str, Shape]:
        return {"running_mean": shape[:1], "running_var": shape[:1], "num_batches_tracked": ()}


@kind(Layer, "activation")
class Activation(Layer):
    """A function of each value."""

    function: Function  # applied to each value; gelu is the exact one
    slope: Finite | None = None  # of leaky_relu below 0; 0.01 when left out

    def __post_init__(self) -> None:
        if self.slope is not None and self.function != "leaky_relu":
            raise Wrong("slope", f"belongs to leaky_relu, not to {self.function}", is_key=True)

    def out_shape(self, shape: Shape) -> Shape:
        return shape


@kind(Layer, "dropout")
class Dropout(Layer):
    """Sets a share of the values to 0 in training. Source: Srivastava et al. 2014."""

    rate: BelowOne  # share that becomes 0; the rest is scaled up to keep the mean

    def out_shape(self, shape: Shape) -> Shape:
        return shape


@table
class ImportedLayer(Layer):
    """A torch module given by its import path, such as `torch.nn:PReLU`, called with one array."""

    path: str
    arguments: Mapping[str, Any]
    # the shape that comes out; the one that goes in if left out
    output: Sides | None = None

    def out_shape(self, shape: Shape) -> Shape:
        return shape if self.output is None else self.output
