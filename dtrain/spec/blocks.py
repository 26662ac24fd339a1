"""Layers that hold layers, and the walk through a stack of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from dtrain.spec.initial import Shape
from dtrain.spec.layers import Layer, Linear, Parameter
from dtrain.spec.spatial import Conv
from dtrain.spec.table import Imported, OneOf, Positive, kind

Layers = Annotated[tuple[Annotated[Layer, OneOf(Layer)], ...], Field(min_length=1)]


@dataclass(frozen=True)
class Row:
    """One layer where it stands: its canonical name (`3`, `4.layers.0`), and the shapes around it."""

    name: str
    layer: Layer
    before: Shape
    after: Shape


class LayerError(ValueError):
    """A layer does not fit the one before it; `at` says where in the table it stands."""

    def __init__(self, at: str, message: str):
        super().__init__(message)
        self.at = at


def walk(layers: Layers, shape: Shape, name: str = "", at: str = "layers") -> Iterator[Row]:
    """Each layer in order, blocks before what they hold. Raises LayerError where one does not fit."""
    for number, layer in enumerate(layers):
        place = f"{at}[{number}]"
        if isinstance(layer, Imported):
            raise LayerError(place, f"a layer cannot be imported yet ({layer.path}); import the whole model")
        try:
            after = layer.out_shape(shape)
        except LayerError as error:
            raise LayerError(f"{place}.{error.at}", str(error)) from None
        except ValueError as error:
            before = f"the shape after {layers[number - 1].kind}" if number else "the input"
            raise LayerError(place, f"{error} ({before} is {shape})") from None
        yield Row(f"{name}{number}", layer, shape, after)
        if isinstance(layer, Residual | Repeat):
            yield from layer.rows(shape, f"{name}{number}.", place)
        shape = after


def shape_after(layers: Layers, shape: Shape) -> Shape:
    """The shape that comes out of a stack."""
    for row in walk(layers, shape):
        if "." not in row.name:
            shape = row.after
    return shape


@kind(Layer, "residual")
class Residual(Layer):
    """x + layers(x); where the shapes differ, x goes through a learned 1x1 projection first.

    Source: He et al. 2016 (arXiv:1512.03385).
    """

    layers: Layers

    def out_shape(self, shape: Shape) -> Shape:
        after = shape_after(self.layers, shape)
        if after != shape and self.projection(shape).out_shape(shape) != after:
            raise ValueError(f"no projection leads from {shape} to {after}")
        return after

    def projection(self, shape: Shape) -> Layer:
        """The layer that brings x to the shape of layers(x); only where the two differ."""
        after = shape_after(self.layers, shape)
        if len(after) != len(shape):
            raise ValueError(f"no projection leads from {shape} to {after}")
        if len(shape) == 1 or (len(shape) == 2 and shape[0] == after[0]):
            return Linear(out=after[-1], bias=False)
        stride = tuple(-(-n // m) for n, m in zip(shape[1:], after[1:], strict=True))
        return Conv(out=after[0], kernel=1, stride=stride, bias=False)

    def rows(self, shape: Shape, name: str, at: str) -> Iterator[Row]:
        """The layers inside, and the projection if there is one."""
        yield from walk(self.layers, shape, f"{name}layers.", f"{at}.layers")
        after = shape_after(self.layers, shape)
        if after != shape:
            yield Row(f"{name}projection", self.projection(shape), shape, after)


@kind(Layer, "repeat")
class Repeat(Layer):
    """The same layers several times over, each time with parameters of its own."""

    times: Positive
    layers: Layers

    def out_shape(self, shape: Shape) -> Shape:
        for _ in range(self.times):
            shape = shape_after(self.layers, shape)
        return shape

    def rows(self, shape: Shape, name: str, at: str) -> Iterator[Row]:
        """The layers of every time."""
        for time in range(self.times):
            yield from walk(self.layers, shape, f"{name}{time}.", f"{at}.layers")
            shape = shape_after(self.layers, shape)


def parameters(layers: Layers, shape: Shape) -> Mapping[str, Parameter]:
    """Every trainable array of a stack under its canonical name, such as `3.weight`."""
    return {
        f"{row.name}.{name}": parameter
        for row in walk(layers, shape)
        for name, parameter in row.layer.parameters(row.before).items()
    }
