"""Torch modules given by an import path: whole models, and layers of a stack."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dtrain.backends.torch_batch_norm import record_batch_norms
from dtrain.errors import RecipeError
from dtrain.spec.arguments import call
from dtrain.spec.imports import Role
from dtrain.spec.initial import Shape
from dtrain.spec.keys import seed_of
from dtrain.spec.layers import ImportedLayer
from dtrain.spec.table import Imported
from dtrain.spec.trust import ImportPathError, Trust


@dataclass(frozen=True)
class Site:
    """Where in a model a layer stands, and what an imported one is found and first drawn by."""

    model: str
    seed: int
    trust: Trust
    name: str = ""  # canonical, such as `4.layers.0`; "" of the whole stack
    place: str = "layers"  # the key in the model's table, such as `layers[4].layers[0]`

    def item(self, number: int) -> "Site":
        """The site of a layer of the stack that stands here."""
        name = f"{self.name}.{number}" if self.name else str(number)
        return replace(self, name=name, place=f"{self.place}[{number}]")

    def within(self, name: str, key: str) -> "Site":
        """The site of a stack inside the layer that stands here."""
        return replace(self, name=f"{self.name}.{name}", place=f"{self.place}.{key}")

    @property
    def key(self) -> str:
        """The dotted key of the layer."""
        return f"models.{self.model}.{self.place}"


def build_imported_model(name: str, spec: Imported, *, seed: int, trust: Trust) -> nn.Module:
    """Build a model given by its import path. Raises RecipeError if it cannot be had."""
    with drawn_by(seed, "weights", name):
        module = _called(spec, "model", trust, f"models.{name}")
    return record_batch_norms(module)


def build_imported(layer: ImportedLayer, shape: Shape, site: Site) -> nn.Module:
    """Build an imported layer, and see what it makes of one example of zeros.

    Its first weights depend on the seed and on where it stands alone, whatever other layers there are.
    Raises RecipeError if it cannot be had, or gives another shape than the recipe says.
    """
    with drawn_by(site.seed, "weights", f"{site.model}/{site.name}"):
        module = _called(layer, "layer", site.trust, site.key)
        made = _made_of_zeros(module, layer, shape, site)
    expected = layer.out_shape(shape)
    if made != expected:
        said = f"{layer.path} makes {list(made)} of {list(shape)}"
        if layer.output is None:
            raise RecipeError(site.key, f"{said}; say so: output = {list(made)}")
        raise RecipeError(f"{site.key}.output", f"found {list(expected)}, but {said}; {list(made)} would do")
    return record_batch_norms(module)


@contextmanager
def drawn_by(*key: int | str) -> Iterator[None]:
    """Draw what is drawn inside from a generator that belongs to this key alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(*key))
        yield


def _called(spec: Imported | ImportedLayer, role: Role, trust: Trust, key: str) -> nn.Module:
    try:
        module = call(spec.path, spec.arguments, role, trust)
    except ImportPathError as error:
        raise RecipeError(f"{key}.kind", error.message, suggestion=error.suggestion) from error
    except Exception as error:  # the class is the user's
        raise RecipeError(key, f"{spec.path}: {error}") from error
    if not isinstance(module, nn.Module):
        raise RecipeError(f"{key}.kind", f"{spec.path} makes a {type(module).__name__}, not a torch module")
    return module


@torch.no_grad()
def _made_of_zeros(module: nn.Module, layer: ImportedLayer, shape: Shape, site: Site) -> Shape:
    """The shape that comes out for one example; whole numbers go in where fractions will not do."""
    was_training = [child for child in module.modules() if child.training]
    module.eval()
    problems = []
    for dtype in (torch.float32, torch.int64):
        try:
            made = module(torch.zeros(1, *shape, dtype=dtype))
            break
        except Exception as error:  # the class is the user's
            problems.append(error)
    else:
        said = f"{layer.path} does not take one array of {list(shape)}: {problems[0]}"
        raise RecipeError(site.key, said) from problems[0]
    for child in was_training:
        child.training = True
    if not isinstance(made, Tensor):
        said = f"{layer.path} gives a {type(made).__name__}; a layer gives one array"
        raise RecipeError(site.key, f"{said}, so a module around it would do")
    if made.ndim == 0 or len(made) != 1:
        said = f"{layer.path} makes {list(made.shape)} of one example of {list(shape)}"
        raise RecipeError(site.key, f"{said}; the first axis must be that of the examples")
    return tuple(made.shape[1:])
