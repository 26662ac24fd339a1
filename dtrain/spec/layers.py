"""What a layer is, without saying how any backend computes it.

Shapes leave out the batch axis: pictures are (channels, height, width), sequences (length, features).
A layer that does not fit the shape before it raises ValueError saying what it needs.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from dtrain.spec.initial import Constant, Initial, Normal, Shape, Uniform
from dtrain.spec.table import Finite, Fraction, Natural, OneOf, Positive, Table, kind

Window = Positive | tuple[Positive, ...]  # one number for every axis, or one for each
Margin = Natural | tuple[Natural, ...]
InitialWeight = Annotated[Initial, OneOf(Initial)] | None
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


def spread(value: int | tuple[int, ...], axes: int, name: str) -> tuple[int, ...]:
    """One number for each of `axes` axes."""
    if isinstance(value, int):
        return (value,) * axes
    if len(value) != axes:
        raise ValueError(f"`{name}` has {len(value)} numbers for an input with {axes} axes")
    return value


def like_pytorch(weight: Shape, fan_in: int, initial: Initial | None, bias: int) -> dict[str, Parameter]:
    """Weight and bias as torch.nn.Linear and torch.nn.Conv2d first draw them: U(±1/sqrt(fan_in))."""
    usual = Uniform(bound=1 / math.sqrt(fan_in))
    drawn = {"weight": Parameter(weight, initial or usual)}
    return drawn | ({"bias": Parameter((bias,), usual)} if bias else {})


@kind(Layer, "linear")
class Linear(Layer):
    """A weighted sum of the features of a vector, or of each element of a sequence."""

    out: Positive
    bias: bool = True
    initial: InitialWeight = None  # of the weight; PyTorch's own when left out

    def out_shape(self, shape: Shape) -> Shape:
        if len(shape) not in (1, 2):
            raise ValueError(
                f"linear needs (features) or (length, features), not {shape}; put a flatten before it"
            )
        return (*shape[:-1], self.out)

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        return like_pytorch((self.out, shape[-1]), shape[-1], self.initial, self.out if self.bias else 0)


@kind(Layer, "conv")
class Conv(Layer):
    """Convolution over one, two or three axes, as many as the input has."""

    out: Positive
    kernel: Window
    stride: Window = 1
    padding: Margin = 0
    dilation: Window = 1
    groups: Positive = 1
    bias: bool = True
    initial: InitialWeight = None

    def out_shape(self, shape: Shape) -> Shape:
        axes = spatial_axes(self, shape)
        divide("conv", shape[0], self.out, self.groups)
        sides = zip(
            shape[1:],
            spread(self.kernel, axes, "kernel"),
            spread(self.stride, axes, "stride"),
            spread(self.padding, axes, "padding"),
            spread(self.dilation, axes, "dilation"),
            strict=True,
        )
        out = tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)
        if min(out) < 1:
            raise ValueError(
                f"a kernel of {self.kernel} does not fit into {shape[1:]} with padding {self.padding}"
            )
        return (self.out, *out)

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        weight = (self.out, shape[0] // self.groups, *spread(self.kernel, len(shape) - 1, "kernel"))
        return like_pytorch(weight, math.prod(weight[1:]), self.initial, self.out if self.bias else 0)


@kind(Layer, "conv_transpose")
class ConvTranspose(Layer):
    """The transpose of a convolution: enlarges by `stride`."""

    out: Positive
    kernel: Window
    stride: Window = 1
    padding: Margin = 0
    output_padding: Margin = 0
    groups: Positive = 1
    bias: bool = True
    initial: InitialWeight = None

    def out_shape(self, shape: Shape) -> Shape:
        axes = spatial_axes(self, shape)
        divide("conv_transpose", shape[0], self.out, self.groups)
        stride = spread(self.stride, axes, "stride")
        extra = spread(self.output_padding, axes, "output_padding")
        if any(e >= s for e, s in zip(extra, stride, strict=True)):
            raise ValueError(
                f"output_padding {self.output_padding} must be smaller than stride {self.stride}"
            )
        sides = zip(
            shape[1:],
            spread(self.kernel, axes, "kernel"),
            stride,
            spread(self.padding, axes, "padding"),
            extra,
            strict=True,
        )
        out = tuple((n - 1) * s - 2 * p + k + e for n, k, s, p, e in sides)
        if min(out) < 1:
            raise ValueError(f"padding {self.padding} leaves nothing of {shape[1:]}")
        return (self.out, *out)

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        weight = (shape[0], self.out // self.groups, *spread(self.kernel, len(shape) - 1, "kernel"))
        return like_pytorch(weight, math.prod(weight[1:]), self.initial, self.out if self.bias else 0)


@kind(Layer, "upsample")
class Upsample(Layer):
    """Enlarges every axis but the channels."""

    factor: Positive = 2
    mode: Literal["nearest", "bilinear"] = "nearest"

    def out_shape(self, shape: Shape) -> Shape:
        axes = spatial_axes(self, shape)
        if self.mode == "bilinear" and axes != 2:
            raise ValueError(f"bilinear upsampling needs (channels, height, width), not {shape}")
        return (shape[0], *(n * self.factor for n in shape[1:]))


@kind(Layer, "pool")
class Pool(Layer):
    """The largest or the mean value of each window; `global` is the mean of each whole channel."""

    mode: Literal["max", "average", "global"]
    size: Window = 2
    stride: Window | None = None  # the size of the window when left out
    padding: Margin = 0

    def out_shape(self, shape: Shape) -> Shape:
        axes = spatial_axes(self, shape)
        if self.mode == "global":
            return shape[:1]
        size, padding = spread(self.size, axes, "size"), spread(self.padding, axes, "padding")
        if any(2 * p > k for k, p in zip(size, padding, strict=True)):
            raise ValueError(f"padding {self.padding} is more than half the window {self.size}")
        stride = spread(self.stride or self.size, axes, "stride")
        out = tuple(
            (n + 2 * p - k) // s + 1 for n, k, s, p in zip(shape[1:], size, stride, padding, strict=True)
        )
        if min(out) < 1:
            raise ValueError(f"a window of {self.size} does not fit into {shape[1:]}")
        return (shape[0], *out)


@kind(Layer, "reshape")
class Reshape(Layer):
    """The same values in another shape."""

    shape: tuple[Positive, ...]

    def out_shape(self, shape: Shape) -> Shape:
        if math.prod(shape) != math.prod(self.shape):
            raise ValueError(
                f"{shape} holds {math.prod(shape)} values, {self.shape} takes {math.prod(self.shape)}"
            )
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

    groups: Positive
    eps: Annotated[float, Field(gt=0)] = 1e-5

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

    eps: Annotated[float, Field(gt=0)] = 1e-5

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

    momentum: Fraction = 0.1
    eps: Annotated[float, Field(gt=0)] = 1e-5

    def out_shape(self, shape: Shape) -> Shape:
        return shape

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        return gain_and_offset(shape[0])

    def buffers(self, shape: Shape) -> dict[str, Shape]:
        return {"running_mean": shape[:1], "running_var": shape[:1], "num_batches_tracked": ()}


@kind(Layer, "activation")
class Activation(Layer):
    """A function of each value."""

    function: Function
    slope: Finite | None = None  # of leaky_relu below 0; 0.01 when left out

    def __post_init__(self) -> None:
        if self.slope is not None and self.function != "leaky_relu":
            raise ValueError(f"`slope` belongs to leaky_relu, not to {self.function}")

    def out_shape(self, shape: Shape) -> Shape:
        return shape


@kind(Layer, "dropout")
class Dropout(Layer):
    """Sets a share of the values to 0 in training. Source: Srivastava et al. 2014."""

    rate: Annotated[float, Field(ge=0, lt=1)]

    def out_shape(self, shape: Shape) -> Shape:
        return shape


@kind(Layer, "embedding")
class Embedding(Layer):
    """A learned vector for each of `size` whole numbers."""

    size: Positive
    out: Positive
    initial: InitialWeight = None

    def out_shape(self, shape: Shape) -> Shape:
        return (*shape, self.out)

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        return {"weight": Parameter((self.size, self.out), self.initial or Normal(std=1.0))}


def spatial_axes(layer: Layer, shape: Shape) -> int:
    """How many axes follow the channels. Raises ValueError unless one, two or three."""
    if len(shape) not in (2, 3, 4):
        raise ValueError(
            f"{layer.kind} needs (channels, height, width), not {shape}; put a reshape before it"
        )
    return len(shape) - 1


def divide(name: str, channels: int, out: int, groups: int) -> None:
    """Check that both sides of a grouped convolution divide into its groups."""
    if channels % groups or out % groups:
        raise ValueError(
            f"{name}: {channels} channels in and {out} out do not both divide into {groups} groups"
        )
