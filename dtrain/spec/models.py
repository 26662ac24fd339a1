"""A model as data: an input shape and layers, a class given by its import path, or out of a checkpoint."""

import math
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from dtrain.spec.blocks import LARGEST, Layers, Row, count, parameters, shape_after, walk
from dtrain.spec.initial import Shape
from dtrain.spec.keys import generator
from dtrain.spec.layers import ImportedLayer
from dtrain.spec.losses import Terms
from dtrain.spec.table import Imported, OneOf, Sides, Table, Wrong, empty, kind, table

if TYPE_CHECKING:
    import numpy as np


@table
class WeightsFrom(Table):
    """The checkpoint that a model's first weights come from.

    `path` is a checkpoint's folder; or a run's: its best checkpoint, or else its newest; or runs/NAME: that
    of the newest finished run. A resolved recipe names the checkpoint itself.
    """

    path: Path  # of a checkpoint, a run, or runs/NAME: its newest finished run
    model: str  # its name there
    averages: bool = True  # its moving average, where it has one
    checksum: str | None = None  # the checkpoint's own; dtrain notes it, so that no other is taken later


@table
class ModelSpec(Table):
    """A stack of layers. Names and layouts of its parameters are PyTorch's: `3.weight`."""

    input: Sides  # without the batch axis: [1, 28, 28]
    layers: Layers  # in order; each takes what the one before gives
    weights_from: WeightsFrom | None = None  # a checkpoint to begin with; drawn at random if left out
    # computes in fp32 and takes its inputs so, where train.precision is less; as the others if left out
    precision: Literal["fp32"] | None = None
    # its own terms in the loss of every phase that updates it; of system.kind = "composed" alone
    losses: Terms = field(default_factory=empty)

    def __post_init__(self) -> None:
        if (found := count(self.layers)) > LARGEST:
            raise Wrong("layers", f"makes {found:,} layers with all repeats; at most {LARGEST:,} would do")

    @property
    def output(self) -> Shape:
        """The shape that comes out, without the batch axis."""
        return shape_after(self.layers, self.input)

    def walk(self) -> Iterator[Row]:
        """Every layer with the shapes around it. Raises LayerError where two do not fit."""
        return walk(self.layers, self.input)

    def rows(self) -> list[Row]:
        """The same at once."""
        return list(self.walk())

    def parameter_count(self) -> int:
        """How many numbers are trained, those of imported layers left out."""
        return sum(math.prod(parameter.shape) for parameter in parameters(self.layers, self.input).values())

    @property
    def imports_layers(self) -> bool:
        """Whether it has layers given by import paths, of whose parameters only a run can tell."""
        return any(isinstance(row.layer, ImportedLayer) for row in self.walk())

    def first_weights(self, seed: int, name: str) -> Iterator[tuple[str, "np.ndarray"]]:
        """First values of every parameter in turn, float32, drawn by (seed, model name, parameter name).

        Imported layers draw those of theirs themselves, when they are built.
        """
        for key, parameter in parameters(self.layers, self.input).items():
            yield key, parameter.initial.draw(parameter.shape, generator(seed, "weights", f"{name}/{key}"))


@table
class ImportedModel(Imported):
    """A model given by its import path: a torch module, or a function that makes one."""

    # its own terms in the loss of every phase that updates it; of system.kind = "composed" alone
    losses: Terms = field(default_factory=empty)
    weights_from: WeightsFrom | None = None  # a checkpoint to begin with
    # computes in fp32 and takes its inputs so, where train.precision is less; as the others if left out
    precision: Literal["fp32"] | None = None


@kind(ModelSpec, "checkpoint")
class StoredModel(WeightsFrom):
    """A model out of a checkpoint, layers and weights: to be frozen, or trained on.

    In a resolved recipe it is a model like any other, with its layers and `weights_from`.
    """

    # its own terms in the loss of every phase that updates it; of system.kind = "composed" alone
    losses: Terms = field(default_factory=empty)
    # computes in fp32 and takes its inputs so, where train.precision is less; as the others if left out
    precision: Literal["fp32"] | None = None


OF_RUN = ("losses", "precision")  # keys of a model that are not its own, but those of the run that trains it


Model = ModelSpec | ImportedModel
AnyModel = Annotated[Model, OneOf(ModelSpec, ImportedModel, otherwise=ModelSpec)]


def output_of(model: Model) -> Shape | None:
    """The shape that a model gives; None for an imported one, which only a run can tell."""
    return model.output if isinstance(model, ModelSpec) else None


def input_of(model: Model) -> Shape | None:
    """The shape that a model takes; None for an imported one."""
    return model.input if isinstance(model, ModelSpec) else None
