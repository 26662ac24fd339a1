"""The tensors of a checkpoint by its recipe: names, shapes and types, known without building anything."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dtrain.format.safetensors_header import Stored
from dtrain.recipe.values import Recipe
from dtrain.spec.averages import StochasticAverage
from dtrain.spec.blocks import parameters
from dtrain.spec.groups import shares, trainable
from dtrain.spec.initial import Shape
from dtrain.spec.layers import BatchNorm, ImportedLayer
from dtrain.spec.models import Model, ModelSpec
from dtrain.spec.optimizer_state import STEP, changing, kept
from dtrain.spec.optimizers import ImportedOptimizer

Parts = Mapping[str, Mapping[str, Stored]]  # "models", "optimizers", "averages": tensors by canonical name


class Expected(NamedTuple):
    """What a tensor must be."""

    shape: Shape
    dtype: str  # as safetensors names it


class Misfit(NamedTuple):
    """What of a part of a checkpoint is not as the recipe has it."""

    part: str
    name: str  # of the tensor
    said: str


@dataclass(frozen=True)
class Known:
    """The tensors of a model by their names in it; what is imported has others, under these beginnings."""

    weights: Mapping[str, Expected] = field(default_factory=dict)
    buffers: Mapping[str, Expected] = field(default_factory=dict)
    statistics: frozenset[str] = frozenset()  # the buffers that equal averages have too
    imported: tuple[str, ...] = ()  # ("",) of a model that is imported as a whole

    def is_open(self, name: str) -> bool:
        """Whether a tensor may be of something imported, of which only a run can tell."""
        return name.startswith(self.imported) if self.imported else False


def misfits(recipe: Recipe, parts: Parts, numbers: Mapping[str, Any]) -> Iterator[Misfit]:
    """Every tensor that the recipe lacks, or has in another shape or type, and every one that is missing.

    `numbers` is what optimizers keep that is no tensor, under names as those of tensors.
    """
    dtype = "F64" if recipe.train.precision == "fp64" else "F32"
    known = {name: known_of(model, dtype) for name, model in recipe.models.items()}
    for part, owners in (("models", recipe.models), ("averages", recipe.averages)):
        if part in parts:
            yield from _strangers(part, parts[part], owners)
            for name in owners:
                own = known[name]
                expected = {**own.weights, **own.buffers}
                if part == "averages":
                    has_more = isinstance(recipe.averages[name], StochasticAverage)
                    more = {key: own.buffers[key] for key in own.statistics} if has_more else {}
                    expected = {**own.weights, **more}
                yield from _compared(part, name, parts[part], expected, own)
    if "optimizers" in parts:
        yield from _strangers("optimizers", [*parts["optimizers"], *numbers], recipe.optimizers)
        for name in recipe.optimizers:
            yield from _of_optimizer(recipe, name, known[name], parts["optimizers"], numbers)


def left_open(recipe: Recipe) -> list[str]:
    """What of a recipe is imported, so that its tensors' shapes are not known."""
    found = []
    for name, model in recipe.models.items():
        if not isinstance(model, ModelSpec):
            found.append(f"models.{name} is imported")
        elif model.imports_layers:
            found.append(f"models.{name} has imported layers")
    imported = (name for name, each in recipe.optimizers.items() if isinstance(each, ImportedOptimizer))
    return found + [f"optimizers.{name} is imported" for name in imported]


def known_of(model: Model, dtype: str) -> Known:
    """What is known of the tensors of a model whose weights are of a type."""
    if not isinstance(model, ModelSpec):
        return Known(imported=("",))
    weights = {
        name: Expected(each.shape, dtype) for name, each in parameters(model.layers, model.input).items()
    }
    buffers, statistics, imported = {}, set(), []
    for row in model.walk():
        for name, shape in row.layer.buffers(row.before).items():
            buffers[f"{row.name}.{name}"] = Expected(shape, dtype if shape else "I64")
        if isinstance(row.layer, BatchNorm):
            statistics |= {f"{row.name}.{name}" for name in row.layer.buffers(row.before)}
        if isinstance(row.layer, ImportedLayer):
            imported.append(f"{row.name}.")
    return Known(weights, buffers, frozenset(statistics), tuple(imported))


def _strangers(part: str, names: Any, owners: Mapping[str, Any]) -> Iterator[Misfit]:
    for name in names:
        if name.partition("/")[0] not in owners:
            yield Misfit(part, name, f"{name[:200]!r} is of no model that the recipe has {part} of")


def _compared(
    part: str, model: str, held: Mapping[str, Stored], expected: Mapping[str, Expected], known: Known
) -> Iterator[Misfit]:
    beginning = f"{model}/"
    for name in expected:
        if f"{beginning}{name}" not in held:
            yield Misfit(part, f"{beginning}{name}", f"{beginning}{name} is missing")
    for name, stored in held.items():
        if not name.startswith(beginning):
            continue
        wanted = expected.get(name.removeprefix(beginning))
        if wanted is not None:
            yield from _unlike(part, name, stored, wanted)
        elif not known.is_open(name.removeprefix(beginning)):
            yield Misfit(part, name, f"{name[:200]!r} is not in the recipe's model")


def _unlike(part: str, name: str, stored: Stored, wanted: Expected) -> Iterator[Misfit]:
    if stored.shape != wanted.shape:
        yield Misfit(part, name, f"{name} is {stored.shape}, and the recipe's is {wanted.shape}")
    if stored.dtype != wanted.dtype:
        yield Misfit(part, name, f"{name} is of {stored.dtype}, and the recipe's of {wanted.dtype}")


def _of_optimizer(
    recipe: Recipe, model: str, known: Known, tensors: Mapping[str, Stored], numbers: Mapping[str, Any]
) -> Iterator[Misfit]:
    """The state of one model's optimizer: of each parameter all that its kind keeps, or nothing yet."""
    wanted = _states(recipe, model)
    found: dict[str, dict[str, str]] = {}  # by parameter and key: the whole name
    for name in (*tensors, *numbers):
        parameter, _, key = name.removeprefix(f"{model}/").rpartition("/")
        if name.startswith(f"{model}/"):
            found.setdefault(parameter, {})[key] = name
    for parameter, keys in found.items():
        if parameter not in known.weights and not known.is_open(parameter):
            yield from (
                Misfit("optimizers", name, f"{name[:200]!r} is of no weight that the recipe has")
                for name in keys.values()
            )
        elif (states := wanted.get(parameter)) is not None:
            for key in sorted(states.required - keys.keys()):
                name = f"{model}/{parameter}/{key}"
                yield Misfit("optimizers", name, f"{name} is missing")
            for key, name in keys.items():
                yield from _unlike_state(name, states.known.get(key), tensors.get(name), numbers.get(name))


def _unlike_state(name: str, wanted: Expected | None, stored: Stored | None, number: Any) -> Iterator[Misfit]:
    if wanted is None:
        yield Misfit("optimizers", name, f"{name[:200]!r} is nothing that the recipe's optimizer keeps")
    elif stored is not None:
        yield from _unlike("optimizers", name, stored, wanted)
    elif wanted.shape or type(number) not in (int, float):
        yield Misfit("optimizers", name, f"{name} is no tensor")


class States(NamedTuple):
    """What an optimizer keeps of a parameter."""

    known: Mapping[str, Expected]
    required: frozenset[str]


def _states(recipe: Recipe, model: str) -> dict[str, States]:
    """What a built-in optimizer keeps of each parameter; nothing of what is imported."""
    spec, optimizer = recipe.models[model], recipe.optimizers[model]
    own = trainable(spec) if isinstance(spec, ModelSpec) else None
    if own is None or isinstance(optimizer, ImportedOptimizer):
        return {}
    dtype = "F64" if recipe.train.precision == "fp64" else "F32"
    found = {}
    for share in shares(optimizer, own):
        for name in share.names:
            always = kept(share.optimizer, own.shapes[name]) or {}
            at_times = changing(share.optimizer, own.shapes[name])
            known = {
                key: Expected(shape, "F32" if key == STEP else dtype)
                for key, shape in {**at_times, **always}.items()
            }
            found[name] = States(known, frozenset(always.keys() - at_times.keys()))
    return found
