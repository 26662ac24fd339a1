"""A model as data: an input shape and a list of layers, or a class given by its import path."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic_core import PydanticCustomError

from dtrain.spec.blocks import Layers, Row, parameters, shape_after, walk
from dtrain.spec.initial import Shape
from dtrain.spec.keys import generator
from dtrain.spec.table import Imported, Positive, Table, adapter, table


@table
class ModelSpec(Table):
    """A stack of layers. Names and layouts of its parameters are PyTorch's: `3.weight`."""

    input: tuple[Positive, ...]  # without the batch axis: [1, 28, 28]
    layers: Layers

    @property
    def output(self) -> Shape:
        """The shape that comes out, without the batch axis."""
        return shape_after(self.layers, self.input)

    def rows(self) -> list[Row]:
        """Every layer with the shapes around it. Raises LayerError where two do not fit."""
        return list(walk(self.layers, self.input))

    def parameter_count(self) -> int:
        """How many numbers are trained."""
        return sum(math.prod(parameter.shape) for parameter in parameters(self.layers, self.input).values())

    def first_weights(self, seed: int, name: str) -> dict[str, np.ndarray]:
        """First values of every parameter, float32, drawn by (seed, model name, parameter name)."""
        return {
            key: parameter.initial.draw(parameter.shape, generator(seed, "weights", f"{name}/{key}"))
            for key, parameter in parameters(self.layers, self.input).items()
        }


Model = ModelSpec | Imported


def output_of(model: Model) -> Shape | None:
    """The shape that a model gives; None for an imported one, which only a run can tell."""
    return model.output if isinstance(model, ModelSpec) else None


def input_of(model: Model) -> Shape | None:
    """The shape that a model takes; None for an imported one."""
    return model.input if isinstance(model, ModelSpec) else None


def decode_model(value: Any) -> Model:
    """A table with `layers` is a stack of layers; one with `kind` is an import path and its arguments."""
    if isinstance(value, ModelSpec | Imported):
        return value
    if not isinstance(value, Mapping):
        raise PydanticCustomError("table_type", "a table is needed here")
    if "kind" not in value:
        spec: ModelSpec = adapter(ModelSpec).validate_python(value)
        return spec
    if not isinstance(value["kind"], str) or ":" not in value["kind"]:
        raise PydanticCustomError("model_kind", "a model's `kind` is an import path, `package.module:Name`; "
                                  "a model of layers has `input` and `layers` instead")  # fmt: skip
    return Imported(path=value["kind"], arguments={key: item for key, item in value.items() if key != "kind"})
