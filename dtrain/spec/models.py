"""A model as data: an input shape and layers, a class given by its import path, or out of a checkpoint."""

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from dtrain.spec.blocks import LARGEST, Layers, Row, count, parameters, shape_after, walk
from dtrain.spec.initial import Shape
from dtrain.spec.keys import generator
from dtrain.spec.layers import ImportedLayer
from dtrain.spec.losses import Terms
from dtrain.spec.table import Imported, OneOf, Sides, Table, Wrong, empty, freeze, kind, table
from dtrain.spec.weights import WeightsFile

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
    weights: Path | WeightsFile | None = None  # safetensors to begin with: a path, or more about them
    weights_from: WeightsFrom | None = None  # a checkpoint to begin with; drawn at random if left out
    # computes in fp32 and takes its inputs so, where train.precision is less; as the others if left out
    precision: Literal["fp32"] | None = None
    # its own terms in the loss of every phase that updates it; of system.kind = "composed" alone
    losses: Terms = field(default_factory=empty)

    def __post_init__(self) -> None:
        if (found := count(self.layers)) > LARGEST:
            raise Wrong("layers", f"makes {found:,} layers with all repeats; at most {LARGEST:,} would do")
        _check_beginning(self)

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
    # safetensors to begin with; a single word, such as "DEFAULT", is an argument of what is imported
    weights: Path | WeightsFile | None = None
    weights_from: WeightsFrom | None = None  # a checkpoint to begin with
    # computes in fp32 and takes its inputs so, where train.precision is less; as the others if left out
    precision: Literal["fp32"] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.weights, Path) and is_argument(str(self.weights)):
            arguments = freeze({**self.arguments, "weights": str(self.weights)})
            object.__setattr__(self, "arguments", arguments)
            object.__setattr__(self, "weights", None)
        _check_beginning(self)


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
BEGINNINGS = ("weights", "weights_from")  # keys that say what a model begins with
WORD = re.compile(r"[^\W\d]\w*")


Model = ModelSpec | ImportedModel
AnyModel = Annotated[Model, OneOf(ModelSpec, ImportedModel, otherwise=ModelSpec)]


def is_argument(weights: str) -> bool:
    """Whether `weights` of an imported model is no path but what torchvision's models call so: "DEFAULT"."""
    return WORD.fullmatch(weights) is not None


def _check_beginning(model: Model) -> None:
    if model.weights is not None and model.weights_from is not None:
        said = "a model begins with the weights of a file or of a checkpoint (weights_from), not with both"
        raise Wrong("weights", f"{said}; one of the two would do", is_key=True)


def weights_of(model: Model) -> WeightsFile | None:
    """The file that a model's first weights come from, where there is one."""
    return WeightsFile(path=model.weights) if isinstance(model.weights, Path) else model.weights


def without_beginning(model: Model) -> Model:
    """The same model as it is where all its weights are given anyway, as by a checkpoint of a run."""
    return dataclasses.replace(model, weights=None, weights_from=None)


def output_of(model: Model) -> Shape | None:
    """The shape that a model gives; None for an imported one, which only a run can tell."""
    return model.output if isinstance(model, ModelSpec) else None


def input_of(model: Model) -> Shape | None:
    """The shape that a model takes; None for an imported one."""
    return model.input if isinstance(model, ModelSpec) else None
