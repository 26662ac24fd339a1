"""Layers over the one, two or three axes behind the channels: as many as the input has."""

import math
from typing import Literal

from dtrain.spec.initial import Shape
from dtrain.spec.layers import InitialWeight, Layer, Parameter, like_pytorch
from dtrain.spec.table import Natural, Positive, kind

Window = Positive | tuple[Positive, ...]  # one number for every axis, or one for each
Margin = Natural | tuple[Natural, ...]


def spread(value: int | tuple[int, ...], axes: int, name: str) -> tuple[int, ...]:
    """One number for each of `axes` axes."""
    if isinstance(value, int):
        return (value,) * axes
    if len(value) != axes:
        raise ValueError(f"`{name}` has {len(value)} numbers for an input with {axes} axes")
    return value


@kind(Layer, "conv")
class Conv(Layer):
    """Convolution over one, two or three axes, as many as the input has."""

    out: Positive  # channels that come out
    kernel: Window  # side of the window, or one for each axis
    stride: Window = 1  # step of the window
    padding: Margin = 0  # zeros added on each side
    dilation: Window = 1  # distance between the window's elements
    groups: Positive = 1  # channels of one do not see those of another
    bias: bool = True  # whether a learned offset is added to each channel
    initial: InitialWeight = None  # of the weight; PyTorch's own when left out

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

    out: Positive  # channels that come out
    kernel: Window  # side of the window, or one for each axis
    stride: Window = 1  # how much larger each axis becomes
    padding: Margin = 0  # cut off on each side
    output_padding: Margin = 0  # added at the end of each axis; below the stride
    groups: Positive = 1  # channels of one do not see those of another
    bias: bool = True  # whether a learned offset is added to each channel
    initial: InitialWeight = None  # of the weight; PyTorch's own when left out

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

    factor: Positive = 2  # how much larger each axis becomes
    mode: Literal["nearest", "bilinear"] = "nearest"  # bilinear takes pictures alone

    def out_shape(self, shape: Shape) -> Shape:
        axes = spatial_axes(self, shape)
        if self.mode == "bilinear" and axes != 2:
            raise ValueError(f"bilinear upsampling needs (channels, height, width), not {shape}")
        return (shape[0], *(n * self.factor for n in shape[1:]))


@kind(Layer, "pool")
class Pool(Layer):
    """The largest or the mean value of each window; `global` is the mean of each whole channel."""

    mode: Literal["max", "average", "global"]  # global leaves (channels), and has no use for the other keys
    size: Window = 2  # side of the window, or one for each axis
    stride: Window | None = None  # the size of the window when left out
    padding: Margin = 0  # added on each side, at most half the window

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
