"""Weights out of safetensors files of another's making."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dtrain.backends.torch_weights import named_tensors
from dtrain.errors import CheckpointError, RecipeError, RecipeErrors
from dtrain.format.weights_files import Weights, checksum, open_weights
from dtrain.recipe.weights import tensors_in
from dtrain.spec.weights import WeightsFile
from dtrain.spec.weights_fit import COMPLEX, FRACTIONS, TRUTH, WHOLE, Fit, fit
from dtrain.spec.weights_fit import Tensor as Known


def load_file(name: str, module: nn.Module, source: WeightsFile) -> None:
    """Give the model of a name the weights in a file; fp64 ones make it fp64, others keep its precision.

    Raises RecipeError if the file is not there, damaged, another than the recipe means, or its names and
    shapes are not the model's.
    """
    with _told_of(name):
        weights = open_weights(source.path)
        if source.checksum not in (None, checksum(weights.files)):
            raise CheckpointError(f"{source.path} is not what the recipe was made with any more")
        found = _compared(module, source, weights)
        if errors := found.mistakes(("models", name, "weights")):
            raise errors[0] if len(errors) == 1 else RecipeErrors(errors, "the recipe")
        if any(weights.tensors[file][1].dtype == "F64" for file in found.taken.values()):
            module.double()
        own = named_tensors(module)
        homes = {file: ours for ours, file in found.taken.items()}
        with torch.no_grad():
            for file, value in _read(weights, list(homes)):
                own[homes[file]].copy_(value)
        for pair in found.twins:
            (first, one), (second, other) = _read(weights, pair)
            if not torch.equal(one, other):
                said = f"{first} and {second} differ in {source.path}, and are one and the same in the model"
                raise CheckpointError(f'{said}; names = {{ "{second}" = "" }} leaves one out')


def begun(module: nn.Module, source: WeightsFile) -> str:
    """In words, which weights a model begins with that `load_file` has given some."""
    return _compared(module, source, open_weights(source.path)).in_words()


def _compared(module: nn.Module, source: WeightsFile, weights: Weights) -> Fit:
    """Which tensor of the files goes where in a module. Of those that it uses twice one name will do."""
    own = named_tensors(module)
    names = {id(tensor): name for name, tensor in own.items()}
    state = module.state_dict(keep_vars=True)
    tied = {name: names[id(tensor)] for name, tensor in state.items() if id(tensor) in names}
    known = {name: Known(tuple(tensor.shape), _sort(tensor)) for name, tensor in own.items()}
    return fit(source, tensors_in(weights), known, tied)


def _sort(tensor: Tensor) -> str:
    if tensor.dtype == torch.bool:
        return TRUTH
    return FRACTIONS if tensor.is_floating_point() else COMPLEX if tensor.is_complex() else WHOLE


def _read(weights: Weights, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Tensors one at a time, each file opened once."""
    with ExitStack() as stack:
        opened = {
            file: stack.enter_context(safe_open(file, framework="pt"))
            for file in {weights.tensors[name][0] for name in names}
        }
        for name in names:
            yield name, opened[weights.tensors[name][0]].get_tensor(name)


@contextmanager
def _told_of(name: str) -> Iterator[None]:
    """Tell what is wrong with a file as a mistake of the recipe, at the key that names it."""
    try:
        yield
    except (CheckpointError, OSError, SafetensorError) as error:
        raise RecipeError(f"models.{name}.weights", str(error)) from None
