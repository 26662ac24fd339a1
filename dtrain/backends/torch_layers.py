"""Layers as torch modules, under the same names."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dtrain.backends.torch_batch_norm import RecordingBatchNorm
from dtrain.backends.torch_imported import Site, build_imported
from dtrain.backends.torch_sequence import GRU, Attention, Position
from dtrain.spec import blocks, layers, sequence, spatial
from dtrain.spec.initial import Shape
from dtrain.spec.layers import Layer
from dtrain.spec.spatial import spread

L = TypeVar("L", bound=Layer)
BUILDERS: dict[type[Layer], Callable[[Any, Shape], nn.Module]] = {}

CONV: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE: dict[int, Callable[..., nn.Module]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
MAX_POOL: dict[int, Callable[..., nn.Module]] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE_POOL: dict[int, Callable[..., nn.Module]] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
}


def build_layer(layer: Layer, shape: Shape, site: Site) -> nn.Module:
    """The module of a layer that takes `shape`, without the batch axis.

    Raises RecipeError if an imported one cannot be had, or gives another shape than the recipe says.
    """
    match layer:
        case layers.ImportedLayer():
            return build_imported(layer, shape, site)
        case blocks.Residual():
            inside = stack(layer.layers, shape, site.within("layers", "layers"))
            changes = layer.out_shape(shape) != shape
            projection = build_layer(layer.projection(shape), shape, site) if changes else None
            return Residual(inside, projection)
        case blocks.Skip():
            return Skip(stack(layer.layers, shape, site.within("layers", "layers")))
        case blocks.Repeat():
            copies = []
            for time in range(layer.times):
                copies.append(stack(layer.layers, shape, site.within(str(time), "layers")))
                shape = blocks.shape_after(layer.layers, shape)
            return Repeat(*copies)
    return BUILDERS[type(layer)](layer, shape)


def builds(kind: type[L]) -> Callable[[Callable[[L, Shape], nn.Module]], Callable[[L, Shape], nn.Module]]:
    """Register the builder of a kind of layer."""

    def register(build: Callable[[L, Shape], nn.Module]) -> Callable[[L, Shape], nn.Module]:
        BUILDERS[kind] = build
        return build

    return register


def stack(of: blocks.Layers, shape: Shape, site: Site) -> nn.Sequential:
    """Layers in a row, which stand at `site`."""
    modules = []
    for number, layer in enumerate(of):
        modules.append(build_layer(layer, shape, site.item(number)))
        shape = layer.out_shape(shape)
    return nn.Sequential(*modules)


@builds(layers.Linear)
def _(layer: layers.Linear, shape: Shape) -> nn.Module:
    return nn.Linear(shape[-1], layer.out, bias=layer.bias)


@builds(spatial.Conv)
def _(layer: spatial.Conv, shape: Shape) -> nn.Module:
    axes = len(shape) - 1
    windows = {name: spread(getattr(layer, name), axes, name) for name in ("stride", "padding", "dilation")}
    kernel = spread(layer.kernel, axes, "kernel")
    return CONV[axes](shape[0], layer.out, kernel, groups=layer.groups, bias=layer.bias, **windows)


@builds(spatial.ConvTranspose)
def _(layer: spatial.ConvTranspose, shape: Shape) -> nn.Module:
    axes = len(shape) - 1
    windows = {
        name: spread(getattr(layer, name), axes, name) for name in ("stride", "padding", "output_padding")
    }
    kernel = spread(layer.kernel, axes, "kernel")
    return CONV_TRANSPOSE[axes](shape[0], layer.out, kernel, groups=layer.groups, bias=layer.bias, **windows)


@builds(spatial.Upsample)
def _(layer: spatial.Upsample, shape: Shape) -> nn.Module:
    return nn.Upsample(scale_factor=layer.factor, mode=layer.mode)


@builds(spatial.Pool)
def _(layer: spatial.Pool, shape: Shape) -> nn.Module:
    if layer.mode == "global":
        return GlobalPool()
    axes = len(shape) - 1
    size, padding = spread(layer.size, axes, "size"), spread(layer.padding, axes, "padding")
    kind = MAX_POOL[axes] if layer.mode == "max" else AVERAGE_POOL[axes]
    return kind(size, spread(layer.stride or layer.size, axes, "stride"), padding)


@builds(layers.Reshape)
def _(layer: layers.Reshape, shape: Shape) -> nn.Module:
    return Reshape(layer.shape)


@builds(layers.Flatten)
def _(layer: layers.Flatten, shape: Shape) -> nn.Module:
    return nn.Flatten()


@builds(layers.GroupNorm)
def _(layer: layers.GroupNorm, shape: Shape) -> nn.Module:
    return nn.GroupNorm(layer.groups, shape[0], layer.eps)


@builds(layers.LayerNorm)
def _(layer: layers.LayerNorm, shape: Shape) -> nn.Module:
    return nn.LayerNorm(shape[-1], layer.eps)


@builds(layers.BatchNorm)
def _(layer: layers.BatchNorm, shape: Shape) -> nn.Module:
    return RecordingBatchNorm(shape[0], layer.eps, layer.momentum)


@builds(layers.Activation)
def _(layer: layers.Activation, shape: Shape) -> nn.Module:
    return nn.LeakyReLU(layer.slope) if layer.slope is not None else ACTIVATIONS[layer.function]()


@builds(layers.Dropout)
def _(layer: layers.Dropout, shape: Shape) -> nn.Module:
    return nn.Dropout(layer.rate)


@builds(sequence.Embedding)
def _(layer: sequence.Embedding, shape: Shape) -> nn.Module:
    return nn.Embedding(layer.size, layer.out)


@builds(sequence.Position)
def _(layer: sequence.Position, shape: Shape) -> nn.Module:
    return Position(*shape)


@builds(sequence.Attention)
def _(layer: sequence.Attention, shape: Shape) -> nn.Module:
    return Attention(shape[1], layer.heads, causal=layer.causal, rotary=layer.rotary)


@builds(sequence.GRU)
def _(layer: sequence.GRU, shape: Shape) -> nn.Module:
    return GRU(shape[1], layer.out)


class GlobalPool(nn.Module):
    """(N, C, ...) to (N, C): the mean of each channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(-1)


class Reshape(nn.Module):
    """(N, ...) to (N, *shape)."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), *self.shape)


class Repeat(nn.Sequential):
    """Stacks alike, one after the other."""


class Residual(nn.Module):
    """x + layers(x), with x projected where the shapes differ."""

    def __init__(self, layers: nn.Module, projection: nn.Module | None):
        super().__init__()
        self.layers = layers
        self.projection = projection

    def forward(self, x: Tensor) -> Tensor:
        shortcut: Tensor = x if self.projection is None else self.projection(x)
        out: Tensor = self.layers(x)
        return shortcut + out


class Skip(nn.Module):
    """x and layers(x), joined along the channels."""

    def __init__(self, layers: nn.Module):
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.layers(x)), 1)
