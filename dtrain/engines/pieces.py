"""The state of an engine: this rank's part of every tensor, under the name of the whole in a checkpoint."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dtrain.backends.torch_weights import check_names, named_tensors
from dtrain.engines.averages import Averages
from dtrain.engines.base import Part
from dtrain.engines.held import Held
from dtrain.errors import CheckpointError

PRECISIONS = (torch.float32, torch.float64)
SINGLE = ("step", "mu_product", "eta", "mu")  # scalars that torch keeps in fp32 whatever the weights are in
Shapes = dict[str, dict[str, tuple[int, ...]]]  # of whole tensors, by model and name


@dataclass(frozen=True)
class Piece:
    """What this rank has of one tensor of the state."""

    part: Part
    model: str
    name: str  # of the parameter or buffer
    key: str  # of the optimizer's state; "" of a weight
    tensor: Tensor

    @property
    def path(self) -> str:
        """The canonical name."""
        return path_of(self.model, self.name, self.key)


def path_of(model: str, name: str, key: str = "") -> str:
    """The canonical name of a tensor: `generator/3.weight`, or `generator/3.weight/exp_avg` of its state."""
    return f"{model}/{name}/{key}" if key else f"{model}/{name}"


def pieces(models: Mapping[str, Held], averages: Averages) -> Iterator[Piece]:
    """This rank's part of everything that a checkpoint holds, in the same order on all ranks."""
    for model, held in models.items():
        for name, tensor in weights_of(held).items():
            yield Piece("models", model, name, "", tensor)
    for model, held in models.items():
        for name, key, value in held.state():
            if isinstance(value, Tensor):
                yield Piece("optimizers", model, name, key, value)
    for model, name, tensor in averages.tensors():
        yield Piece("averages", model, name, "", tensor)


def numbers(models: Mapping[str, Held]) -> dict[str, Any]:
    """What is no tensor of the optimizers' state, under canonical names."""
    return {
        path_of(model, name, key): value
        for model, held in models.items()
        for name, key, value in held.state()
        if not isinstance(value, Tensor)
    }


@torch.no_grad()
def restore(
    models: Mapping[str, Held],
    averages: Averages,
    given: Mapping[Part, Mapping[str, Tensor]],
    *,
    state: Mapping[str, Any],
    counts: Mapping[str, int],
) -> None:
    """Take up whole tensors of models and averages, the optimizers' state, and how far averages had come.

    Collective. Raises CheckpointError, before anything is changed, where names or shapes are others.
    """
    own: Shapes = {
        model: {name: shape_of(held, name, tensor) for name, tensor in weights_of(held).items()}
        for model, held in models.items()
    }
    kept: Shapes = {model: {} for model in averages.specs}
    for model, name, tensor in averages.tensors():
        kept[model][name] = shape_of(models[model], name, tensor)
    weights, means = fitting("models", own, given), fitting("averages", kept, given)
    for model, held in models.items():
        parameters = dict(held.weights())
        for name, tensor in weights_of(held).items():
            whole = weights[model][name]
            tensor.copy_(held.part(name, whole) if name in parameters else whole)
        held.refresh()
    restore_optimizers(models, _in_precision(models, weights, state))
    averages.restore(means, counts)


def _in_precision(
    models: Mapping[str, Held], weights: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> dict[str, Any]:
    """The optimizers' state as weights need it that were in fp32 and are in fp64, or the other way."""
    turned = {
        path_of(model, name): own.dtype
        for model, held in models.items()
        for name, own in held.weights()
        if {weights[model][name].dtype, own.dtype} == {*PRECISIONS}
    }

    def cast(path: str, value: Any) -> Any:
        owner, _, key = path.rpartition("/")
        is_other = isinstance(value, Tensor) and value.dtype in PRECISIONS and owner in turned
        return value.to(turned[owner]) if is_other and not (value.dim() == 0 and key in SINGLE) else value

    return {path: cast(path, value) for path, value in state.items()}


def restore_optimizers(models: Mapping[str, Held], state: Mapping[str, Any]) -> None:
    """Give every optimizer its state, of canonical names."""
    trained = [model for model, held in models.items() if held.is_trained]
    entries: dict[str, dict[str, dict[str, Any]]] = {model: {} for model in trained}
    for path, value in state.items():
        model, _, rest = path.partition("/")
        name, _, key = rest.rpartition("/")
        entries.setdefault(model, {}).setdefault(name, {})[key] = value
    for model, own in entries.items():
        if model not in trained:
            more = ", ".join(path_of(model, name) for name in sorted(own)[:8])
            raise CheckpointError(f"optimizer state of parameters that the recipe lacks: {more}")
        models[model].restore(own)


def weights_of(held: Held) -> dict[str, Tensor]:
    """This rank's parts of the parameters of a model, and the buffers that a checkpoint holds."""
    weights = dict(held.weights())
    return {name: weights.get(name, own.detach()) for name, own in named_tensors(held.module).items()}


def shape_of(held: Held, name: str, tensor: Tensor) -> tuple[int, ...]:
    """The shape of the whole of a parameter, or of a buffer."""
    is_weight = any(name == key for key, _ in held.weights())
    return held.shape(name) if is_weight else tuple(tensor.shape)


def fitting(
    part: Part, own: Shapes, given: Mapping[Part, Mapping[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """Tensors of a part by model and name. Raises CheckpointError unless names and shapes are the same."""
    found = given.get(part, {})
    shapes = {path_of(model, name): shape for model, named in own.items() for name, shape in named.items()}
    check_names(part, shapes, found)
    return {model: {name: found[path_of(model, name)] for name in named} for model, named in own.items()}
