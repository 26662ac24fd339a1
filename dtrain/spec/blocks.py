"""Layers that hold layers, and the walk through a stack of them."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

from dtrain.spec.initial import Shape
from dtrain.spec.layers import ImportedLayer, Layer, Linear, Parameter, title
from dtrain.spec.spatial import Conv
from dtrain.spec.table import MOST_AXES, AtLeastOne, OneOf, Positive, Wrong, kind

Layers = Annotated[tuple[Annotated[Layer, OneOf(Layer, ImportedLayer)], ...], AtLeastOne()]
LARGEST = 10_000  # layers of a model, each as often as it is repeated
MOST_VALUES = 10**12  # that a layer gives for one example


@dataclass(frozen=True)
class Row:
    """One layer where it stands: its canonical name (`3`, `4.layers.0`), and the shapes around it."""

    name: str
    layer: Layer
    before: Shape
    after: Shape


class LayerError(Wrong):
    """A layer does not fit the one before it."""


def walk(layers: Layers, shape: Shape, name: str = "", at: str = "layers") -> Iterator[Row]:
    """Each layer in order, blocks before what they hold. Raises LayerError where one does not fit."""
    for number, layer in enumerate(layers):
        after = _after(layers, number, shape, at)
        yield Row(f"{name}{number}", layer, shape, after)
        if isinstance(layer, Block):
            yield from layer.rows(shape, f"{name}{number}.", f"{at}[{number}]")
        shape = after


def shape_after(layers: Layers, shape: Shape) -> Shape:
    """The shape that comes out of a stack."""
    for number in range(len(layers)):
        shape = _after(layers, number, shape, "layers")
    return shape


def _after(layers: Layers, number: int, shape: Shape, at: str) -> Shape:
    """The shape behind one layer."""
    layer, place = layers[number], f"{at}[{number}]"
    try:
        after = layer.out_shape(shape)
        if len(after) > MOST_AXES or math.prod(after) > MOST_VALUES:
            raise ValueError(f"gives {after}, and no machine holds so much")
        return after
    except LayerError as error:
        raise LayerError(f"{place}.{error.at}", str(error)) from None
    except ValueError as error:
        before = f"{at}[{number - 1}], {title(layers[number - 1])}, gives" if number else "what goes in is"
        name = "" if str(error).startswith(layer.kind) else f"{layer.kind}: "
        where = f"{place}.{error.at}" if isinstance(error, Wrong) else place
        raise LayerError(where, f"{name}{error} ({before} {shape})") from None


def count(layers: Layers) -> int:
    """How many layers a stack holds, each as often as it is repeated."""
    blocks = (layer for layer in layers if isinstance(layer, Block))
    return len(layers) + sum(count(block.layers) * getattr(block, "times", 1) for block in blocks)


@kind(Layer, "residual")
class Residual(Layer):
    """x + layers(x); where the shapes differ, x goes through a learned 1x1 projection first.

    Source: He et al. 2016 (arXiv:1512.03385).
    """

    layers: Layers  # what is added to x

    def out_shape(self, shape: Shape) -> Shape:
        after = shape_after(self.layers, shape)
        if after != shape and _projection(shape, after).out_shape(shape) != after:
            raise ValueError(f"no projection leads from {shape} to {after}; a padding may keep the size")
        return after

    def projection(self, shape: Shape) -> Layer:
        """The layer that brings x to the shape of layers(x); only where the two differ."""
        return _projection(shape, shape_after(self.layers, shape))

    def rows(self, shape: Shape, name: str, at: str) -> Iterator[Row]:
        """The layers inside, and the projection if there is one."""
        yield from walk(self.layers, shape, f"{name}layers.", f"{at}.layers")
        after = shape_after(self.layers, shape)
        if after != shape:
            yield Row(f"{name}projection", self.projection(shape), shape, after)


def _projection(shape: Shape, after: Shape) -> Layer:
    if len(after) != len(shape):
        raise ValueError(f"no projection leads from {shape} to {after}")
    if len(shape) == 1 or (len(shape) == 2 and shape[0] == after[0]):
        return Linear(out=after[-1], bias=False)
    stride = tuple(-(-n // m) for n, m in zip(shape[1:], after[1:], strict=True))
    return Conv(out=after[0], kernel=1, stride=stride, bias=False)


@kind(Layer, "skip")
class Skip(Layer):
    """x and layers(x), one behind the other along the first axis: of pictures their channels.

    Skips in each other make a U-Net. Source: Ronneberger et al. 2015 (arXiv:1505.04597).
    """

    layers: Layers  # what is joined to x; they keep the size of every axis but the first

    def out_shape(self, shape: Shape) -> Shape:
        after = shape_after(self.layers, shape)
        if len(after) != len(shape) or after[1:] != shape[1:]:
            raise ValueError(f"{after} cannot be joined to {shape}: only the first of the sizes may differ")
        return (shape[0] + after[0], *shape[1:])

    def rows(self, shape: Shape, name: str, at: str) -> Iterator[Row]:
        """The layers inside."""
        yield from walk(self.layers, shape, f"{name}layers.", f"{at}.layers")


@kind(Layer, "repeat")
class Repeat(Layer):
    """The same layers several times over, each time with parameters of its own."""

    times: Positive  # how often
    layers: Layers  # what is repeated; each time goes on from the shape before

    def __post_init__(self) -> None:
        if count(self.layers) * self.times > LARGEST:
            raise Wrong("times", f"{self.times} times make more than {LARGEST:,} layers; fewer would do")

    def out_shape(self, shape: Shape) -> Shape:
        for _ in range(self.times):
            before, shape = shape, shape_after(self.layers, shape)
            if before == shape:
                break
        return shape

    def rows(self, shape: Shape, name: str, at: str) -> Iterator[Row]:
        """The layers of every time."""
        for time in range(self.times):
            yield from walk(self.layers, shape, f"{name}{time}.", f"{at}.layers")
            shape = shape_after(self.layers, shape)


Block = Residual | Skip | Repeat


def parameters(layers: Layers, shape: Shape) -> Mapping[str, Parameter]:
    """Every trainable array of a stack under its canonical name, such as `3.weight`."""
    return {
        f"{row.name}.{name}": parameter
        for row in walk(layers, shape)
        for name, parameter in row.layer.parameters(row.before).items()
    }
